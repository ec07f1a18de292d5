"""Where changes of keys and people are made: the writer of the database, then the word that tells the workers.

The command line and the admin API both come here. The writers judge; nothing is decided twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from proxy import board
from proxy._fastpath import key_digest
from proxy.clock import wall_us
from proxy.identity import keys
from proxy.identity.actor import By
from proxy.store.keys import KeyRow
from proxy.store.people import Seen
from proxy.store.store import Store


def new_row(
    pepper: bytes,
    tenant: str,
    name: str,
    *,
    env: str = "live",
    seconds: int | None = None,
    **fields: Any,
) -> tuple[str, KeyRow]:
    """A new secret and the row that is stored of it. `fields` are more of the row's own. ValueError for `env`."""
    secret = keys.new_secret(env)
    now_us = wall_us()
    values = {"owner": None, "tags": (), "endpoints": None, "models": None, **fields}
    for word in ("endpoints", "models"):
        values[word] = None if values[word] is None else tuple(values[word])
    row = KeyRow(
        key_id=keys.new_key_id(),
        digest=key_digest(secret.encode(), pepper),
        tenant=tenant,
        name=name,
        last4=secret[-4:],
        created_us=now_us,
        expires_us=None if seconds is None else now_us + seconds * 1_000_000,
        **values,
    )
    return secret, row


def state_of(row: KeyRow, now_us: int) -> str:
    """active, retiring (it has a successor), expired or revoked."""
    if row.revoked_us is not None:
        return "revoked"
    if row.ends_us is not None and row.ends_us <= now_us:
        return "expired"
    return "retiring" if row.successor is not None else "active"


class Desk:
    """The changes of one host. `tell` is `announce.announce` for it: it takes the words of the board to raise."""

    def __init__(self, store: Store, pepper: Callable[[], bytes], tell: Callable[..., Awaitable[None]]) -> None:
        self._store = store
        self._pepper = pepper
        self._tell = tell

    def new_row(self, tenant: str, name: str, **fields: Any) -> tuple[str, KeyRow]:
        """As `new_row`, with this host's pepper."""
        return new_row(self._pepper(), tenant, name, **fields)

    async def tell_again(self) -> None:
        """For a change that was made before: whoever made it may have died before the workers were told."""
        await self._tell(board.KEYS_GENERATION, board.KEYS_CREATED)

    async def create_key(self, row: KeyRow, by: By) -> KeyRow:
        """Adds a key and returns it as it stands."""
        made = await self._store.insert_key(row, by)
        await self._tell(board.KEYS_CREATED)
        return made

    async def rotate_key(self, key_id: str, env: str, overlap_seconds: int, by: By) -> tuple[str, KeyRow]:
        """Makes a successor; returns its secret and its row."""
        # The old key's word for its environment is in the key itself, which Weir does not have.
        secret = keys.new_secret(env)
        digest = key_digest(secret.encode(), self._pepper())
        new_id = keys.new_key_id()
        overlap_us = overlap_seconds * 1_000_000
        row = await self._store.rotate_key(key_id, digest, new_id, secret[-4:], wall_us(), overlap_us, by)
        await self._tell(board.KEYS_GENERATION, board.KEYS_CREATED)
        return secret, row

    async def change_key(self, key_id: str, changes: Mapping[str, Any], etag: str | None, by: By) -> KeyRow:
        """Changes what may be changed of a key."""
        row = await self._store.change_key(key_id, changes, etag, by)
        await self._tell(board.KEYS_GENERATION)
        return row

    async def revoke_key(self, key_id: str, by: By, reason: str) -> None:
        """Ends one key."""
        await self._store.revoke_key(key_id, wall_us(), by, reason)
        await self._tell(board.KEYS_GENERATION)

    async def revoke_keys(self, by: By, *, tenant: str | None, owner: str | None, reason: str) -> list[str]:
        """Ends every key of a tenant, an owner, or an owner there; returns their ids."""
        try:
            return await self._store.revoke_keys(wall_us(), by, tenant=tenant, owner=owner, reason=reason)
        finally:
            # Some may have ended although the last of them could not.
            await self._tell(board.KEYS_GENERATION)

    async def disable_user(self, user_id: str, by: By) -> None:
        """Ends a person's sessions, tokens and keys."""
        await self._store.disable_user(user_id, wall_us(), by)
        await self._tell(board.KEYS_GENERATION)

    async def revoke_role(self, user_id: str, tenant: str | None, by: By, seen: Seen | None = None) -> None:
        """Takes a person's role there, and ends their sessions and keys there."""
        await self._store.revoke_role(user_id, tenant, wall_us(), by, seen)
        await self._tell(board.KEYS_GENERATION)
