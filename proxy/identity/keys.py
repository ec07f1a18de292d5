"""API keys: how one is made, and how a worker knows one again.

A key is `wk_<env>_<43 base62>_<6 base62>`: 256 random bits, then the CRC-32 of everything before the last underscore,
so that a typing error is refused without a look-up and a leak can be found by a scanner. Only its keyed digest is
stored.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from proxy import board, bounds
from proxy._fastpath import Arena, key_digest, key_well_formed
from proxy.call import Grant, Principal
from proxy.clock import wall_us
from proxy.errors import Refusal
from proxy.store.keys import KeyRow

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ENV_PATTERN = re.compile(r"[a-z0-9]{2,16}")


def _base62(number: int, digits: int) -> str:
    out = []
    for _ in range(digits):
        number, digit = divmod(number, 62)
        out.append(_ALPHABET[digit])
    return "".join(reversed(out))


def new_secret(env: str) -> str:
    """A new key for the environment `env` (2..16 of a-z0-9). Raises ValueError for another."""
    if not ENV_PATTERN.fullmatch(env):
        raise ValueError(f"environment {env!r}: must be 2 to 16 of a-z and 0-9, such as live or test")
    stem = f"wk_{env}_{_base62(secrets.randbits(256), 43)}"
    return f"{stem}_{_base62(zlib.crc32(stem.encode()), 6)}"


def new_key_id() -> str:
    """A public name for a key: safe to log, to show and to type."""
    return f"key_{_base62(secrets.randbits(80), 14)}"


class Known:
    """A key this worker has seen: who it is, under which generation of the key table that was true, what it may do.

    `grants` is filled by `authorise`, by (endpoint, model), and dropped with the policy that made it.
    """

    __slots__ = ("generation", "grants", "policy", "principal")

    def __init__(self, principal: Principal, generation: int) -> None:
        self.principal = principal
        self.generation = generation
        self.grants: dict[tuple[str, str], Grant] = {}
        self.policy: object = None


def principal_of(row: KeyRow) -> Principal:
    """The caller that a row of the key table stands for."""
    return Principal(
        tenant=row.tenant,
        key_id=row.key_id,
        owner=row.owner,
        tags=tuple(row.tags),
        endpoints=None if row.endpoints is None else tuple(row.endpoints),
        models=None if row.models is None else tuple(row.models),
        expires_us=row.ends_us,
    )


class Keys:
    """The keys a worker knows. An entry holds while its word stands where it stood before the look-up.

    For a known key that is the word of changes that may end one; for an unknown one, the word of new keys. A key that
    is made for one tenant therefore sends no other key back to the database.
    """

    def __init__(
        self,
        arena: Arena,
        pepper: bytes,
        look_up: Callable[[bytes], Awaitable[KeyRow | None]],
        look_up_all: Callable[[Sequence[bytes]], Awaitable[Sequence[KeyRow]]],
    ) -> None:
        self._arena = arena
        self._pepper = pepper
        self._look_up = look_up
        self._look_up_all = look_up_all
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, int] = OrderedDict()
        self._renewed = arena.word(board.KEYS_GENERATION)  # nothing is known yet that could be older

    @property
    def renewed(self) -> int:
        """The last change of keys, by its generation, of which this worker knows what it did."""
        return self._renewed

    def __repr__(self) -> str:
        return f"[Keys: {len(self._known)} known, {len(self._unknown)} unknown]"

    def known(self, secret: bytes) -> Known | None:
        """The key, when it is in memory and still true; None when the database must be asked.

        Raises Refusal invalid_api_key for a malformed key or one known not to exist.
        """
        if not key_well_formed(secret):
            raise Refusal("invalid_api_key")
        digest = key_digest(secret, self._pepper)
        generation = self._arena.word(board.KEYS_GENERATION)
        entry = self._known.get(digest)
        if entry is not None:
            return entry if entry.generation == generation else None
        if self._unknown.get(digest) == self._arena.word(board.KEYS_CREATED):
            raise Refusal("invalid_api_key")
        return None

    async def look_up(self, secret: bytes) -> Known:
        """Asks the database. Raises Refusal invalid_api_key, or store_unavailable when it cannot be asked."""
        digest = key_digest(secret, self._pepper)
        # The words are read before the table: a change between the two makes this entry stale, never fresh.
        generation = self._arena.word(board.KEYS_GENERATION)
        created = self._arena.word(board.KEYS_CREATED)
        try:
            row = await self._look_up(digest)
        except Exception as error:
            raise Refusal("store_unavailable") from error
        if row is None or row.revoked_us is not None:
            self._forget(digest, created)
            raise Refusal("invalid_api_key")
        entry = Known(principal_of(row), generation)
        self._known[digest] = entry
        if len(self._known) > bounds.KEYS_CACHED_MAX:
            self._known.popitem(last=False)
        return entry

    async def renew(self) -> None:
        """After a change of keys: asks about the known ones again, so that not each of them has to at its next use.

        Above all a change made shortly before the database goes away then leaves only the changed keys unusable.
        What could not be asked stays stale, so a revocation is never forgotten; call it again, it is quick when there
        is nothing to do. Of many keys only the latest looked up are renewed.
        """
        generation = self._arena.word(board.KEYS_GENERATION)
        if generation == self._renewed:
            return
        created = self._arena.word(board.KEYS_CREATED)
        latest = list(islice(reversed(self._known), bounds.KEYS_RENEWED_MAX))
        for start in range(0, len(latest), bounds.KEYS_RENEWED_AT_ONCE):
            digests = latest[start : start + bounds.KEYS_RENEWED_AT_ONCE]
            try:
                rows = {row.digest: row for row in await self._look_up_all(digests)}
            except Exception:
                return
            for digest in digests:
                self._renew(digest, rows.get(digest), generation, created)
        self._renewed = generation

    def _renew(self, digest: bytes, row: KeyRow | None, generation: int, created: int) -> None:
        entry = self._known.get(digest)
        if row is None or row.revoked_us is not None:
            self._forget(digest, created)
        elif entry is not None and entry.generation < generation:
            # Else it is gone, or was looked up after this: that look-up knew more.
            if entry.principal == principal_of(row):
                entry.generation = generation
            else:
                self._known[digest] = Known(principal_of(row), generation)

    def _forget(self, digest: bytes, created: int) -> None:
        """From now on it is unknown. Revoked is for ever; one that does not exist may yet be made."""
        self._known.pop(digest, None)
        self._unknown[digest] = created
        if len(self._unknown) > bounds.KEYS_UNKNOWN_CACHED_MAX:
            self._unknown.popitem(last=False)


def expired(principal: Principal) -> bool:
    """Whether the key's time is over by the wall clock."""
    return principal.expires_us is not None and wall_us() >= principal.expires_us
