"""Tokens (JWT) as credentials: how a worker verifies one, and how it knows it again.

A verdict is kept by the digest of the whole token: of a part of it, another token could have the same. It ends with the
token's own time, with the policy that gave it, with the key that proved it, and with a change of the key table's
generation, after which the user behind it is looked up again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from hashlib import sha256
from itertools import islice

from jwt import PyJWS
from jwt.exceptions import PyJWTError

from proxy import board, bounds
from proxy._fastpath import Arena
from proxy.clock import now_ns, wall_us
from proxy.errors import Refusal
from proxy.identity.claims import CHALLENGE, Parts, Person, algorithm, person, read, refusal
from proxy.identity.issuers import Issuers
from proxy.identity.jwks import Key, KeySet
from proxy.identity.keys import Known
from proxy.identity.tenancy import resolve
from proxy.policy.snapshot import Issuer

log = logging.getLogger("weir.identity")

# What no time or policy will mend: another look at the same bytes would find the same. For a signature that is so
# while the key that it was compared with is published.
_FOR_EVER = frozenset({"token_malformed", "token_signature", "token_audience", "token_claim"})
_WARN_NS = 60_000_000_000  # between two lines about groups that were left out
_jws = PyJWS()

Identity = tuple[str, str]  # issuer and subject


class Verified:
    """A token this worker has verified: whom it stands for, and the key that proved it."""

    __slots__ = ("key", "keys", "known", "person")

    def __init__(self, keys: KeySet, key: Key, who: Person) -> None:
        self.keys = keys
        self.key = key
        self.person = who
        self.known: dict[str, Known] = {}  # by the tenant it was used in


class BadSignature(Refusal):
    """token_signature; `key` is the one that did not make it. Its issuer may yet publish another under that name."""

    def __init__(self, key: Key) -> None:
        super().__init__("token_signature", headers=CHALLENGE)
        self.key = key


class Tokens:
    """The tokens a worker knows. disabled_among: those of some users who may no longer call, by the database."""

    def __init__(
        self,
        arena: Arena,
        issuers: Issuers,
        disabled_among: Callable[[Sequence[Identity]], Awaitable[Collection[Identity]]],
    ) -> None:
        self._arena = arena
        self._issuers = issuers
        self._disabled_among = disabled_among
        self._verified: OrderedDict[bytes, Verified] = OrderedDict()
        self._refused: OrderedDict[bytes, Refusal] = OrderedDict()
        self._warned_ns = -_WARN_NS
        self._renewed = arena.word(board.KEYS_GENERATION)  # nothing is known yet that could be older

    def __repr__(self) -> str:
        return f"[Tokens: {len(self._verified)} verified, {len(self._refused)} refused, {self._issuers!r}]"

    def adopt(self, issuers: Mapping[str, Issuer]) -> None:
        """Takes the issuers of a new policy. When any of them differs, every verdict is given anew."""
        if self._issuers.adopt(issuers):
            self._verified.clear()
            self._refused.clear()

    def known(self, token: bytes, asked: bytes | None, at_ns: int) -> Known | None:
        """The caller, when this token is in memory and its verdict still stands; None when it must be looked up.

        asked: the tenant that the client asks for. at_ns: the request's arrival by `now_ns`. Raises Refusal.
        """
        if len(token) > bounds.TOKEN_BYTES_MAX:
            raise refusal("token_too_large", str(bounds.TOKEN_BYTES_MAX))
        digest = sha256(token).digest()
        found = self._verified.get(digest)
        if found is None:
            if not self._issuers.any:
                raise Refusal("invalid_api_key")
            refused = self._refused.get(digest)
            if refused is None:
                return None
            if isinstance(refused, BadSignature) and not refused.key.published:
                del self._refused[digest]
                return None
            raise Refusal(refused.code, refused.detail, headers=refused.headers)
        if not found.key.published or at_ns >= found.keys.stale_ns:
            return None
        if wall_us() >= found.person.expires_us:
            del self._verified[digest]
            raise refusal("token_expired")
        known = found.known.get(resolve(found.person.tenants, asked))
        if known is None or known.generation != self._arena.word(board.KEYS_GENERATION):
            return None
        return known

    def met(self, token: bytes) -> bool:
        """Whether it has been verified here, whatever has become of it since."""
        return sha256(token).digest() in self._verified

    async def look_up(self, token: bytes, asked: bytes | None) -> Known:
        """Verifies the token where that was not done, and asks the database about its user. Raises Refusal."""
        digest = sha256(token).digest()
        found = self._verified.get(digest)
        if found is None or not found.key.published or now_ns() >= found.keys.stale_ns:
            self._verified.pop(digest, None)
            found = await self._verify(token, digest)
        tenant = resolve(found.person.tenants, asked)
        # The word is read before the table: a change between the two makes this entry stale, never fresh.
        generation = self._arena.word(board.KEYS_GENERATION)
        who = found.person
        try:
            disabled = await self._disabled_among([who.identity])
        except Exception as error:
            raise Refusal("store_unavailable") from error
        if disabled:
            raise refusal("token_revoked")
        if wall_us() >= who.expires_us:
            raise refusal("token_expired")
        known = found.known[tenant] = Known(who.principal(tenant), generation, who.identity)
        return known

    async def prove(self, token: bytes) -> Person:
        """Whom a token stands for, judged whole and not remembered. Nobody is asked about its user. Raises Refusal."""
        return (await self._judge(token)).person

    async def renew(self) -> None:
        """After a change of keys or users: asks about the users of known tokens again, before their next requests do.

        As with keys: a change made shortly before the database goes away leaves only the disabled ones unusable, and
        whoever could not be asked about stays stale. Call it again; it is quick when there is nothing to do.
        """
        generation = self._arena.word(board.KEYS_GENERATION)
        if generation == self._renewed:
            return
        latest: dict[Identity, list[Known]] = {}
        for found in islice(reversed(self._verified.values()), bounds.KEYS_RENEWED_MAX):
            latest.setdefault(found.person.identity, []).extend(found.known.values())
        identities = list(latest)
        for start in range(0, len(identities), bounds.KEYS_RENEWED_AT_ONCE):
            some = identities[start : start + bounds.KEYS_RENEWED_AT_ONCE]
            try:
                disabled = await self._disabled_among(some)
            except Exception:
                return
            for identity in some:
                for known in latest[identity] if identity not in disabled else ():
                    # One that was looked up after this is told by more than this was.
                    known.generation = max(known.generation, generation)
        self._renewed = generation

    async def ended_among(self, identities: Sequence[Identity]) -> Collection[Identity]:
        """Those of these users who may no longer call. Raises what the database raises."""
        return await self._disabled_among(identities)

    async def _verify(self, token: bytes, digest: bytes) -> Verified:
        try:
            found = await self._judge(token)
        except Refusal as refused:
            if refused.code in _FOR_EVER:
                self._refused[digest] = _kept(refused)
                if len(self._refused) > bounds.TOKENS_REFUSED_CACHED_MAX:
                    self._refused.popitem(last=False)
            raise
        self._verified[digest] = found
        if len(self._verified) > bounds.TOKENS_CACHED_MAX:
            self._verified.popitem(last=False)
        return found

    async def _judge(self, token: bytes) -> Verified:
        """The whole verdict: issuer, header, key, signature, claims, in this order. Raises Refusal."""
        parts = read(token)
        # Only to choose whose keys must have signed it; it is believed when one of them has.
        keys = self._issuers.of(parts.claims.get("iss"))
        if keys is None:
            raise refusal("token_issuer")
        named, kid = algorithm(parts.header, keys.issuer)
        key = keys.find(kid, named, now_ns())
        if key is None:
            key = await keys.need(kid, named)
        if not keys.current:  # the policy changed while its issuer was asked
            raise Refusal("issuer_unavailable", retry_after_ms=1000)
        check_signature(token, parts, key, named)
        who = person(parts.claims, keys.issuer, wall_us())
        if who.groups_left_out:
            self._without_groups(keys.issuer.name)
        return Verified(keys, key, who)

    def _without_groups(self, issuer: str) -> None:
        """Counts a token whose groups were left out, and says so now and then: its user will ask why."""
        self._issuers.tally.groups_left_out(issuer)
        if now_ns() - self._warned_ns >= _WARN_NS:
            self._warned_ns = now_ns()
            log.warning("a token of the issuer %s has more groups than it holds: it counts as one without", issuer)


def _kept(refused: Refusal) -> Refusal:
    """The same without its traceback, which would hold the whole request."""
    if isinstance(refused, BadSignature):
        return BadSignature(refused.key)
    return Refusal(refused.code, refused.detail, headers=refused.headers)


def check_signature(token: bytes, parts: Parts, key: Key, named: str) -> None:
    """Raises BadSignature unless this key signed these very bytes. `named`: an algorithm of the policy."""
    try:
        signed = _jws.decode_complete(token, key.jwk, algorithms=[named])
    except (PyJWTError, ValueError, TypeError):
        raise BadSignature(key) from None
    if signed["payload"] != parts.payload:
        raise BadSignature(key)
