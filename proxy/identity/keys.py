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
from collections.abc import Awaitable, Callable

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
        expires_us=row.expires_us,
    )


class Keys:
    """The keys a worker knows. An entry holds while the generation word stands where it stood before the look-up."""

    def __init__(self, arena: Arena, pepper: bytes, look_up: Callable[[bytes], Awaitable[KeyRow | None]]) -> None:
        self._arena = arena
        self._pepper = pepper
        self._look_up = look_up
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, int] = OrderedDict()

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
        if self._unknown.get(digest) == generation:
            raise Refusal("invalid_api_key")
        return None

    async def look_up(self, secret: bytes) -> Known:
        """Asks the database. Raises Refusal invalid_api_key, or store_unavailable when it cannot be asked."""
        digest = key_digest(secret, self._pepper)
        # The word is read before the table: a change between the two makes this entry stale, never fresh.
        generation = self._arena.word(board.KEYS_GENERATION)
        try:
            row = await self._look_up(digest)
        except Exception as error:
            raise Refusal("store_unavailable") from error
        if row is None or row.revoked_us is not None:
            self._known.pop(digest, None)
            self._unknown[digest] = generation
            if len(self._unknown) > bounds.KEYS_UNKNOWN_CACHED_MAX:
                self._unknown.popitem(last=False)
            raise Refusal("invalid_api_key")
        entry = Known(principal_of(row), generation)
        self._known[digest] = entry
        if len(self._known) > bounds.KEYS_CACHED_MAX:
            self._known.popitem(last=False)
        return entry


def expired(principal: Principal) -> bool:
    """Whether the key's time is over by the wall clock."""
    return principal.expires_us is not None and wall_us() >= principal.expires_us
