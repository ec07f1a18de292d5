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
from proxy.errors import Refusal
from proxy.identity.addresses import blocks_of
from proxy.identity.lookups import LookUps, Words
from proxy.identity.tenancy import line_of
from proxy.policy.snapshot import KINDS
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


Credential = bytes | tuple[str, str]  # a key's digest, or issuer and subject of a token's user


class Known:
    """A key this worker has seen: who it is, under which generation of the key table that was true, what it may do.

    `credential` is what the database is asked for when that has become doubtful.

    `grants` is filled by `authorise`, by (endpoint, model), and dropped with the policy that made it. `lines` are the
    header lines of every answer to it.
    """

    __slots__ = ("blocks", "credential", "generation", "grants", "lines", "policy", "principal")

    def __init__(self, principal: Principal, generation: int, credential: Credential = b"") -> None:
        self.principal = principal
        self.credential = credential
        self.generation = generation
        self.grants: dict[tuple[str, str], Grant] = {}
        self.policy: object = None
        self.lines = line_of(principal.tenant)
        self.blocks = None if principal.networks is None else blocks_of(principal.networks)


def principal_of(row: KeyRow) -> Principal:
    """The caller that a row of the key table stands for."""
    return Principal(
        tenant=row.tenant,
        key_id=row.key_id,
        owner=row.owner,
        tags=_tags(row),
        endpoints=row.endpoints,
        models=row.models,
        expires_us=row.ends_us,
        plan=row.plan,
        own_limits=tuple((kind, limit) for kind in KINDS if (limit := getattr(row, kind)) is not None),
        networks=row.networks,
    )


def _tags(row: KeyRow) -> tuple[tuple[str, str], ...]:
    """Its tags, as far as they fit a call's slot: whoever wrote the row, its calls can be opened."""
    tags = []
    room = bounds.TAGS_BYTES_MAX
    for name, value in row.tags[: bounds.TAGS_MAX]:
        room -= len(name.encode()) + len(value.encode())
        if room < 0:
            break
        tags.append((name, value))
    return tuple(tags)


class Keys:
    """The keys a worker knows. An entry holds while its word stands where it stood before the look-up.

    For a known key that is the word of changes that may end one; for an unknown one, the word of new keys. A key that
    is made for one tenant therefore sends no other key back to the database.
    """

    def __init__(
        self,
        arena: Arena,
        pepper: bytes,
        look_up_all: Callable[[Sequence[bytes]], Awaitable[Sequence[KeyRow]]],
    ) -> None:
        """look_up_all: the rows of these digests; at most three of its questions are open at one time."""
        self._arena = arena
        self._pepper = pepper
        self._look_up_all = look_up_all
        # Two queues: what nobody knows, in any number, does not delay the keys that were known before a change.
        self._again = LookUps(look_up_all, self._words, bounds.KEYS_CACHED_MAX)
        self._strangers = LookUps(look_up_all, self._words, bounds.KEYS_WAITING_MAX)
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, int] = OrderedDict()
        self._renewed = arena.word(board.KEYS_GENERATION)  # nothing is known yet that could be older

    @property
    def arena(self) -> Arena:
        """Where the words are by which it goes."""
        return self._arena

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
        digest = key_digest(secret, self._pepper)
        entry = self._known.get(digest)
        if entry is not None:  # and well formed, or no look-up would have found it
            return entry if entry.generation == self._arena.word(board.KEYS_GENERATION) else None
        if not key_well_formed(secret) or self._unknown.get(digest) == self._arena.word(board.KEYS_CREATED):
            raise Refusal("invalid_api_key")
        return None

    def met(self, secret: bytes) -> bool:
        """Whether it was good when it was last looked up."""
        return key_digest(secret, self._pepper) in self._known

    async def look_up(self, secret: bytes) -> Known:
        """Asks the database. Raises Refusal invalid_api_key, or store_unavailable when it cannot be asked."""
        digest = key_digest(secret, self._pepper)
        queue = self._again if digest in self._known else self._strangers
        found = await queue.find(digest)
        known = self._learn(digest, found.row, found.words)
        if known is None:
            raise Refusal("invalid_api_key")
        self._known.move_to_end(digest)
        return known

    async def renew(self) -> None:
        """After a change of keys: asks about the known ones again, so that not each of them has to at its next use.

        Above all a change made shortly before the database goes away then leaves only the changed keys unusable.
        What could not be asked stays stale, so a revocation is never forgotten; call it again, it is quick when there
        is nothing to do. Of many keys only the latest looked up are renewed.
        """
        words = self._words()
        if words.generation == self._renewed:
            return
        latest = list(islice(reversed(self._known), bounds.KEYS_RENEWED_MAX))
        for start in range(0, len(latest), bounds.KEYS_RENEWED_AT_ONCE):
            digests = latest[start : start + bounds.KEYS_RENEWED_AT_ONCE]
            try:
                rows = {row.digest: row for row in await self._look_up_all(digests)}
            except Exception:
                return
            for digest in digests:
                if digest in self._known:  # else a look-up has found meanwhile that it ended, or it was pushed out
                    self._learn(digest, rows.get(digest), words)
        self._renewed = words.generation

    async def ended_among(self, digests: Sequence[bytes]) -> list[bytes]:
        """Those of these keys that have ended. Raises what the database raises. The others are renewed by the way."""
        words = self._words()
        rows = {row.digest: row for row in await self._look_up_all(digests)}
        for digest in digests:
            if digest in self._known:
                self._learn(digest, rows.get(digest), words)
        return [digest for digest in digests if (row := rows.get(digest)) is None or row.revoked_us is not None]

    def _words(self) -> Words:
        return Words(self._arena.word(board.KEYS_GENERATION), self._arena.word(board.KEYS_CREATED))

    def _learn(self, digest: bytes, row: KeyRow | None, words: Words) -> Known | None:
        """What the table said under these words becomes what this worker knows, unless it knows of a later look."""
        entry = self._known.get(digest)
        if entry is not None and entry.generation > words.generation:
            return entry
        if row is None or row.revoked_us is not None:
            self._forget(digest, words.created)
            return None
        principal = principal_of(row)
        if entry is not None and entry.principal == principal:
            entry.generation = words.generation
            return entry
        entry = self._known[digest] = Known(principal, words.generation, digest)
        if len(self._known) > bounds.KEYS_CACHED_MAX:
            self._known.popitem(last=False)
        return entry

    def _forget(self, digest: bytes, created: int) -> None:
        """From now on it is unknown. Revoked is for ever; one that does not exist may yet be made."""
        self._known.pop(digest, None)
        self._unknown[digest] = created
        if len(self._unknown) > bounds.KEYS_UNKNOWN_CACHED_MAX:
            self._unknown.popitem(last=False)
