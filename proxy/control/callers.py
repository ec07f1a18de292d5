"""Who calls the admin API: a person by a session's token, or a service key by its secret. Nobody else.

Nothing is remembered: each request asks the database, so what was ended opens nothing any more. A key without rights of
its own, which is every ordinary key of the data plane, is here as unknown as one that does not exist.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from proxy import bounds
from proxy._fastpath import key_digest, key_well_formed
from proxy.clock import now_ns, wall_us
from proxy.control.problems import Problem
from proxy.identity.addresses import address_of, blocks_of, site_of, within
from proxy.identity.credentials import digest_of
from proxy.identity.roles import Actor
from proxy.policy.snapshot import Policy
from proxy.store.keys import actor_of
from proxy.store.store import Session, Store

_MINUTE_NS = 60_000_000_000


class Caller(Struct, frozen=True):
    """Who it is; `session` where it is a person."""

    actor: Actor
    session: Session | None = None


class PerMinute:
    """How often each of a bounded number of names came in its current minute."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: OrderedDict[str, tuple[int, int]] = OrderedDict()  # (times, since) of this minute

    def count(self, name: str) -> int:
        """Counts one. For how many seconds the name is above `most`; 0: it is not."""
        now = now_ns()
        times, since_ns = self._names.pop(name, (0, now))
        if now - since_ns >= _MINUTE_NS:
            times, since_ns = 0, now
        self._names[name] = (times + 1, since_ns)
        if len(self._names) > bounds.CONTROL_SITES_MAX:
            self._names.popitem(last=False)
        return max(-(-(since_ns + _MINUTE_NS - now) // 1_000_000_000), 1) if times >= self._most else 0

    def above(self, name: str) -> bool:
        """Whether the next one would be above `most`."""
        times, since_ns = self._names.get(name, (0, 0))
        return times >= self._most and now_ns() - since_ns < _MINUTE_NS


class Failures:
    """Bad credentials by where they come from. A site above the limit is told to wait; its good ones are served."""

    def __init__(self) -> None:
        self._sites = PerMinute(bounds.CONTROL_FAILURES_PER_MINUTE)

    def note(self, peer: str) -> None:
        """Counts one. Raises Problem 429 above the limit."""
        seconds = self._sites.count(site_of(address_of(peer)))
        if seconds:
            raise _wait("too_many_failures", "Too many bad credentials from your address; wait.", seconds)

    def above(self, peer: str) -> bool:
        """Whether the next one would be told to wait."""
        return self._sites.above(site_of(address_of(peer)))


class Changes:
    """Changes by tenant: each waits for the one head of the audit log, which no tenant may keep from the others."""

    def __init__(self) -> None:
        self._tenants = PerMinute(bounds.CONTROL_CHANGES_PER_MINUTE)

    def note(self, actor: Actor) -> None:
        """Counts one, also when it will be refused. Raises Problem 429 above the limit. The platform has none."""
        seconds = 0 if actor.tenant is None else self._tenants.count(actor.tenant)
        if seconds:
            raise _wait("too_many_changes", "Too many changes by your tenant in this minute; wait.", seconds)


def _wait(code: str, text: str, seconds: int) -> Problem:
    return Problem(429, code, text, headers={"retry-after": str(seconds)})


def unauthorized() -> Problem:
    """The same for every credential that opens nothing here."""
    text = "Send a session's token or a service key as `Authorization: Bearer …`; this is none that opens anything."
    return Problem(401, "unauthorized", text, headers={"www-authenticate": "Bearer"})


class Callers:
    """Knows callers by their credentials."""

    def __init__(self, store: Store, pepper: bytes, policy: Callable[[], Policy]) -> None:
        self._store = store
        self._pepper = pepper
        self._policy = policy
        self.failures = Failures()
        self.changes = Changes()

    async def who(self, authorization: str | None, peer: str) -> Caller:
        """The caller. Raises Problem 401 and 429, StoreUnavailable."""
        scheme, _, secret = (authorization or "").partition(" ")
        found = None
        if scheme.lower() == "bearer" and secret.isascii() and len(secret) <= bounds.TOKEN_BYTES_MAX:
            if secret.startswith("weir_session_"):
                found = await self._person(secret)
            elif secret.startswith("wk_") and key_well_formed(secret.encode()):
                found = await self._service(secret.encode(), peer)
        if found is not None and (found.actor.tenant is None or found.actor.tenant in self._policy().tenants):
            return found
        if authorization is not None:  # who brings none has guessed nothing
            self.failures.note(peer)
        raise unauthorized()

    async def _person(self, token: str) -> Caller | None:
        found = await self._store.session_actor(digest_of(token), wall_us())
        return None if found is None else Caller(found[1], found[0])

    async def _service(self, secret: bytes, peer: str) -> Caller | None:
        row = await self._store.key_by_digest(key_digest(secret, self._pepper))
        if row is None or not row.rights or row.revoked_us is not None:
            return None
        if row.ends_us is not None and wall_us() >= row.ends_us:
            return None
        if row.networks is not None and not within(address_of(peer), blocks_of(row.networks)):
            return None
        return Caller(actor_of(row))
