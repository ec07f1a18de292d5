"""The public keys of one issuer in one worker: fetched off the request's path, refreshed before they age, rotated.

A key stands for one name and one algorithm, both settled when the set is read: what a token says of its own key chooses
among them and changes nothing. A withdrawn key is marked, so that every verdict that rests on it ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from proxy import bounds
from proxy.clock import now_ns, wall_us
from proxy.errors import Refusal
from proxy.identity.claims import Json, refusal, strict_json
from proxy.identity.shelf import Kept, Shelf
from proxy.policy.meaning_issuers import address_complaint
from proxy.policy.snapshot import Issuer

log = logging.getLogger("weir.identity")

# Which key an algorithm takes (RFC 7518, 3.1; RFC 8037, 3.1): type, and curve where there are several.
_FITTING = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")  # RFC 7518, 6.2.2, 6.3.2, 6.4.1
_SECOND_NS = 1_000_000_000
_RETRY_SECONDS = 1.0
_JOINS_MAX = 3  # fetches that one request waits for: the first keys, a refresh, and one begun for a name like its own
_DISCOVERY = "/.well-known/openid-configuration"


class KeysUnavailable(Exception):
    """An issuer's keys could not be had; the text says why, for the log."""


class Key:
    """One published key for one algorithm. `published` turns false once its issuer has withdrawn it."""

    __slots__ = ("content", "jwk", "published")

    def __init__(self, jwk: PyJWK, content: Json) -> None:
        self.jwk = jwk
        self.content = content
        self.published = True


Keys = dict[tuple[str | None, str], Key]
Told = Callable[[bool], None]


class KeySet:
    """The keys of one issuer. `start` begins to keep them fresh in this event loop; `close` ends that.

    fetch: the set as its issuer publishes it; raises KeysUnavailable. told: is told how each fetch ended. shelf: where
    the last good set is kept for other processes; None: nowhere.
    """

    def __init__(
        self, issuer: Issuer, fetch: Callable[[Issuer], Awaitable[Json]], told: Told, shelf: Shelf | None = None
    ) -> None:
        self.issuer = issuer
        self.current = True  # false once the policy no longer has this issuer as it is here
        self.stale_ns = 0  # from then on no key here proves anything; 0 before the first fetch
        self._keys: Keys = {}
        self._kids: frozenset[str] = frozenset()  # every name in the set, those of unusable keys too
        self._absent: OrderedDict[str, None] = OrderedDict()  # names asked for since `_asked_ns`, in vain
        self._asked_ns: int | None = None  # when an unknown name last caused a fetch
        self._fetch = fetch
        self._told = told
        # What is in a file already needs no second one.
        self._shelf = None if (issuer.keys or "").startswith("file:") else shelf
        self._fetching: asyncio.Task[bool] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._good = True
        self._good_ns: int | None = None  # when the last good fetch began

    def __repr__(self) -> str:
        return f"[KeySet of {self.issuer.name}: {len(self._kids)} keys]"

    # === reading ===

    def find(self, kid: str | None, algorithm: str, at_ns: int) -> Key | None:
        """The key of that name for that algorithm, while the set is fresh. Without a name: the only one that fits."""
        return self._keys.get((kid, algorithm)) if at_ns < self.stale_ns else None

    async def need(self, kid: str | None, algorithm: str) -> Key:
        """The same, after asking the issuer where that can help. Raises Refusal token_key or issuer_unavailable."""
        try:
            async with asyncio.timeout(bounds.JWKS_WAIT_SECONDS_MAX):
                return await self._need(kid, algorithm)
        except TimeoutError:
            raise self._unavailable(_RETRY_SECONDS) from None

    async def _need(self, kid: str | None, algorithm: str) -> Key:
        for _ in range(_JOINS_MAX):
            # What is under way was begun for this very name, or may know it.
            if self._fetching is None or self.find(kid, algorithm, now_ns()) is not None:
                break
            await self._join()
        if now_ns() >= self.stale_ns:
            raise self._unavailable(_RETRY_SECONDS)
        found = self.find(kid, algorithm, now_ns())
        if found is None and self._worth_asking(kid):
            assert kid is not None
            await self._ask(kid)
            found = self.find(kid, algorithm, now_ns())
        if found is None:
            raise refusal("token_key")
        return found

    def _worth_asking(self, kid: str | None) -> bool:
        """Whether a newer set could know this name. Raises Refusal when it could and it is too soon to ask."""
        if kid is None or kid in self._kids:
            return False  # no newer set gives a token a name, or its key another algorithm
        wait_ns = 0 if self._asked_ns is None else self._asked_ns + bounds.JWKS_ASK_SECONDS * _SECOND_NS - now_ns()
        if wait_ns <= 0:
            return True
        if kid in self._absent:
            return False
        raise self._unavailable(wait_ns / _SECOND_NS)

    async def _ask(self, kid: str) -> None:
        """Fetches for an unknown name, and remembers when the answer does not have it."""
        self._asked_ns = now_ns()
        self._absent.clear()
        if not await self._join():
            raise self._unavailable(_RETRY_SECONDS)
        if kid not in self._kids:
            self._absent[kid] = None
            if len(self._absent) > bounds.JWKS_KIDS_ABSENT_MAX:
                self._absent.popitem(last=False)

    def _unavailable(self, seconds: float) -> Refusal:
        return Refusal("issuer_unavailable", retry_after_ms=int(seconds * 1000) + 1)

    # === keeping ===

    def start(self) -> None:
        """Begins to keep the keys fresh."""
        first = self._fetching = asyncio.create_task(self._refresh())  # here: a first request finds it under way
        self._keeping = asyncio.create_task(self._keep(first))

    def inherit(self, before: KeySet) -> None:
        """Begins with the keys that an earlier policy had from the same place: a reload needs no issuer in reach."""
        mine, theirs = self.issuer, before.issuer
        same = (mine.issuer, mine.keys, mine.algorithms) == (theirs.issuer, theirs.keys, theirs.algorithms)
        if not same or before._good_ns is None:
            return
        # As objects of their own: with the old policy every verdict that rests on the old ones ends.
        self._keys = {at: Key(key.jwk, key.content) for at, key in before._keys.items()}
        self._kids = before._kids
        self._good_ns = before._good_ns
        self.stale_ns = before._good_ns + mine.stale_seconds * _SECOND_NS

    def retire(self) -> None:
        """The policy has no such issuer any more: nothing rests on these keys from now on."""
        self.current = False
        self.stale_ns = 0
        for key in self._keys.values():
            key.published = False
        for task in (self._keeping, self._fetching):
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        """Ends what `start` began, and waits for it."""
        self.retire()
        tasks = [task for task in (self._keeping, self._fetching) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._keeping = self._fetching = None

    async def _keep(self, first: asyncio.Task[bool]) -> None:
        good = await first
        retry = _RETRY_SECONDS
        while True:
            await asyncio.sleep(self.issuer.refresh_seconds if good else min(retry, self.issuer.refresh_seconds))
            retry = _RETRY_SECONDS if good else min(retry * 2, bounds.JWKS_RETRY_SECONDS_MAX)
            good = await self._join()

    async def _join(self) -> bool:
        """Waits for the fetch under way, or for a new one: however many wait, it is one. Whether it was good."""
        if not self.current:
            return False
        task = self._fetching
        if task is None:
            task = self._fetching = asyncio.create_task(self._refresh())
        # A client that hangs up ends its own wait and not the fetch of all the others, and the other way round.
        await asyncio.wait({task})
        return not task.cancelled() and task.result()

    async def _refresh(self) -> bool:
        """One fetch. The keys of before stay when it fails, until they are stale."""
        try:
            good = await self._fetched()
            if not good:
                await self._recall()
        finally:
            self._fetching = None
        if good and not self._good:
            log.info("the keys of the issuer %s are fresh again", self.issuer.name)
        self._good = good
        self._told(good)
        return good

    async def _fetched(self) -> bool:
        """Whether the set could be fetched and is in place."""
        begun_ns, begun_us = now_ns(), wall_us()
        try:
            async with asyncio.timeout(bounds.JWKS_FETCH_SECONDS_MAX):
                document = await self._fetch(self.issuer)
            before = set(self._keys)
            self._take(document)
        except (KeysUnavailable, TimeoutError) as error:
            self._note(str(error) or f"no answer within {bounds.JWKS_FETCH_SECONDS_MAX} s")
            return False
        except Exception as error:  # a fetch that fails in a way of its own must not end the keeping
            self._note(repr(error))
            return False
        if set(self._keys) != before:
            log.info("new keys of the issuer %s: it publishes %d", self.issuer.name, len(self._kids))
        self._good_ns = begun_ns
        self.stale_ns = begun_ns + self.issuer.stale_seconds * _SECOND_NS
        public = [each for each in document["keys"] if not any(name in each for name in _PRIVATE)]
        await self._put(Kept({"keys": public}, begun_us))
        return True

    async def _put(self, kept: Kept) -> None:
        if self._shelf is not None:
            try:
                await asyncio.to_thread(self._shelf.put, self.issuer, kept)
            except OSError as error:  # a full disk takes nothing from those who have the keys
                log.warning("the keys of the issuer %s cannot be kept on disk: %s", self.issuer.name, error)

    async def _recall(self) -> None:
        """The keys that a process of this host fetched last, where this one never had any and cannot have them now.

        Not before a fetch has failed: a key that was withdrawn meanwhile would prove tokens once more.
        """
        if self._shelf is None or self._good_ns is not None:
            return
        kept = await asyncio.to_thread(self._shelf.get, self.issuer)
        if kept is None or not self.current:
            return
        age_us = wall_us() - kept.fetched_us
        if not 0 <= age_us < self.issuer.stale_seconds * 1_000_000:
            return  # too old, or of a clock that was set back since: its age is unknown
        try:
            self._take(kept.document)
        except KeysUnavailable:
            return
        self._good_ns = now_ns() - age_us * 1000
        self.stale_ns = self._good_ns + self.issuer.stale_seconds * _SECOND_NS
        seconds = age_us // 1_000_000
        log.warning("the issuer %s is away: this host's keys of it of %d s ago are in use", self.issuer.name, seconds)

    def _note(self, reason: str) -> None:
        if self._good:  # once for each time it goes away, not for each try
            log.warning("the keys of the issuer %s cannot be fetched: %s", self.issuer.name, reason)

    def _take(self, document: Json) -> None:
        """Puts a newly read set in place. A key that is still published stays the same object."""
        keys, kids = usable(document, self.issuer)
        if not keys:
            raise KeysUnavailable("its key set has no key that could prove a token of this policy")
        before = self._keys
        kept = {
            at: before[at] if at in before and before[at].content == key.content else key for at, key in keys.items()
        }
        staying = {id(key) for key in kept.values()}
        for key in before.values():
            if id(key) not in staying:
                key.published = False
        self._keys, self._kids = kept, kids


def usable(document: Json, issuer: Issuer) -> tuple[Keys, frozenset[str]]:
    """The keys of a JWK set (RFC 7517, section 5) by name and algorithm, and every name in it.

    A key that is not for signatures, does not fit an algorithm of the policy, is too short, or shows its private part
    is left out. So are two keys of one name for one algorithm: which of them is meant would be a guess. Raises
    KeysUnavailable for what is no key set.
    """
    listed = document.get("keys")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise KeysUnavailable("its answer is not a JWK set")
    if len(listed) > bounds.JWKS_KEYS_MAX:
        raise KeysUnavailable(f"its key set has more than {bounds.JWKS_KEYS_MAX} keys")
    found: dict[tuple[str | None, str], list[Key]] = {}
    kids = set()
    for content in listed:
        kid = content.get("kid")
        if kid is not None and (not isinstance(kid, str) or len(kid) > bounds.TOKEN_KID_BYTES_MAX):
            continue
        if kid is not None:
            kids.add(kid)
        for algorithm in issuer.algorithms:
            key = _key(content, algorithm)
            if key is None:
                continue
            if kid is not None:
                found.setdefault((kid, algorithm), []).append(key)
            found.setdefault((None, algorithm), []).append(key)
    return {at: keys[0] for at, keys in found.items() if len(keys) == 1}, frozenset(kids)


def _key(content: Json, algorithm: str) -> Key | None:
    """The key, when it may verify signatures of that algorithm (RFC 7517, 4.2 to 4.4)."""
    kind, curve = _FITTING[algorithm]
    if content.get("kty") != kind or (curve is not None and content.get("crv") != curve):
        return None
    if content.get("use", "sig") != "sig" or content.get("alg", algorithm) != algorithm:
        return None
    operations = content.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if any(name in content for name in _PRIVATE):
        return None
    try:
        jwk = PyJWK(content, algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    bits = getattr(jwk.key, "key_size", 0)
    if kind == "RSA" and not bounds.RSA_BITS_MIN <= bits <= bounds.RSA_BITS_MAX:
        return None
    return Key(jwk, content)


# === fetching ===


async def published(issuer: Issuer) -> Json:
    """The issuer's key set as it publishes it now: from its file, its address, or by discovery.

    Raises KeysUnavailable. Nothing of the environment (proxies, netrc) counts, no redirect is followed, no cookie kept.
    """
    if issuer.keys is not None and issuer.keys.startswith("file:"):
        return await asyncio.to_thread(_file, issuer.keys.removeprefix("file:"))
    tls = await asyncio.to_thread(_tls, issuer.ca_bundle)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "weir"},
        timeout=aiohttp.ClientTimeout(total=bounds.JWKS_FETCH_SECONDS_MAX),
        auto_decompress=False,
        trust_env=False,
    ) as session:
        address = issuer.keys
        if address is None:
            # OpenID Connect Discovery 1.0, 4.1 and 4.3: the document's issuer must be the one that was asked.
            said = await _get(session, issuer.issuer.rstrip("/") + _DISCOVERY, issuer)
            if said.get("issuer") != issuer.issuer:
                raise KeysUnavailable("its discovery document is that of another issuer")
            address = said.get("jwks_uri")
            if not isinstance(address, str):
                raise KeysUnavailable("its discovery document names no jwks_uri")
        return await _get(session, address, issuer)


async def _get(session: aiohttp.ClientSession, address: str, issuer: Issuer) -> Json:
    complaint = address_complaint(address, http_loopback=issuer.http_loopback)
    if complaint is not None:
        raise KeysUnavailable(f"{address[: bounds.ISSUER_BYTES_MAX]}: {complaint}")
    try:
        async with session.get(address, allow_redirects=False) as answer:
            if answer.status != 200:
                raise KeysUnavailable(f"{address} answers {answer.status}")
            raw = bytearray()
            async for part in answer.content.iter_any():
                raw += part
                if len(raw) > bounds.JWKS_BYTES_MAX:
                    raise KeysUnavailable(f"{address} answers more than {bounds.JWKS_BYTES_MAX} bytes")
    except (aiohttp.ClientError, OSError) as error:
        raise KeysUnavailable(f"{address}: {error}") from error
    return _read(bytes(raw), address)


def _file(path: str) -> Json:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(bounds.JWKS_BYTES_MAX + 1)
    except OSError as error:
        raise KeysUnavailable(f"{path}: {error.strerror}") from error
    if len(raw) > bounds.JWKS_BYTES_MAX:
        raise KeysUnavailable(f"{path} has more than {bounds.JWKS_BYTES_MAX} bytes")
    return _read(raw, path)


def _read(raw: bytes, where: str) -> Json:
    try:
        return strict_json(raw)
    except ValueError:
        raise KeysUnavailable(f"{where} holds no JSON object") from None


def _tls(ca_bundle: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise KeysUnavailable(f"{ca_bundle}: {error}") from error
