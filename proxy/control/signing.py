"""Signing in with a token of an identity provider: it says who somebody is, and the memberships say what they are.

The token must be made for the admin API: its `aud` holds `control.audience`. A token that an application holds to call
models with opens nothing here.
"""

from __future__ import annotations

from typing import Any

from proxy import bounds
from proxy._fastpath import Arena
from proxy.clock import boot_id, wall_us
from proxy.control.persons import SessionMade
from proxy.control.policies import Policies
from proxy.control.problems import Problem, invalid
from proxy.errors import Refusal
from proxy.identity.actor import By
from proxy.identity.claims import Person, read, subject_id
from proxy.identity.credentials import digest_of, new_id, new_token
from proxy.identity.issuers import Issuers
from proxy.identity.roles import Actor
from proxy.identity.shelf import Shelf
from proxy.identity.tenancy import resolve
from proxy.identity.tokens import Tokens
from proxy.settings import Settings
from proxy.store.store import Attempt, Session, Store


class Silent:
    """A tally that nobody reads: the control process has no column among the counters."""

    def refreshed(self, issuer: str, good: bool) -> None:
        """Counts nothing."""

    def retired(self, issuer: str) -> None:
        """Counts nothing."""

    def groups_left_out(self, issuer: str) -> None:
        """Counts nothing."""


class NoEntry(Problem):
    """Somebody whom the provider vouches for has no role there, or was disabled; with what goes on record of it."""

    def __init__(self, by: By, attempt: Attempt) -> None:
        super().__init__(403, "no_role", "The token's person has no role there.")
        self.by = by
        self.attempt = attempt


class SignIns:
    """Verifies tokens by the issuers of the policy. Start and close it inside the running loop."""

    def __init__(self, settings: Settings, store: Store, policies: Policies) -> None:
        self._audience = settings.control.audience
        self._store = store
        self._policies = policies
        self._issuers = Issuers(Silent(), shelf=Shelf(settings.data_dir))
        self._arena = Arena(str(settings.data_dir / "arena"), boot_id())
        self._tokens = Tokens(self._arena, self._issuers, store.disabled_among)

    async def close(self) -> None:
        """Ends what is being fetched."""
        await self._issuers.close()
        self._arena.close()

    async def enter(self, token: str, tenant: str | None, peer: str) -> SessionMade:
        """A session in the tenant. Raises Problem and Refusal for the token, NotDone where it opens nothing."""
        if self._audience is None:
            raise Problem(403, "no_sign_in", "Sign-in by an identity provider is off: control.audience is not set.")
        policy = self._policies.current()
        self._tokens.adopt(policy.issuers)
        raw = token.encode()
        person = await self._tokens.prove(raw)
        if self._audience not in _audiences(read(raw).claims.get("aud")):
            raise Problem(401, "token_audience", "The token is not made for the admin API.")
        place = _place(person, tenant)
        # The provider acts, and for its own people alone; whether they may come in is judged again by the writer.
        by = By(Actor("provider", person.issuer, None, place), peer)
        user = await self._store.user_by_identity(person.issuer, person.subject)
        found = None if user is None else await self._store.membership(user.user_id, place)
        if user is None or user.disabled_us is not None or found is None:
            target = subject_id(place, person.issuer, person.subject) if user is None else user.user_id
            raise NoEntry(by, Attempt("sessions.create", place, target))
        secret, now_us = new_token("session"), wall_us()
        until_us = min(now_us + bounds.SESSION_SECONDS_MAX * 1_000_000, person.expires_us)
        session = Session(new_id("ses"), user.user_id, place, peer, now_us, until_us)
        await self._store.open_session(session, digest_of(secret), by)
        return made(session, found.role, secret)


def made(session: Session, role: Any, secret: str) -> SessionMade:
    """A new session as it is answered."""
    return SessionMade(
        session_id=session.session_id,
        user_id=session.user_id,
        tenant=session.tenant,
        role=role,
        expires_us=session.expires_us,
        token=secret,
    )


def _audiences(said: object) -> list[object]:
    return said if isinstance(said, list) else [said]


def _place(person: Person, tenant: str | None) -> str:
    try:
        return resolve(person.tenants, None if tenant is None else tenant.encode())
    except Refusal as refused:
        if refused.code == "tenant_required":
            raise invalid("the token speaks for several tenants: say which", "$.tenant") from None
        raise Problem(403, "no_role", "The token's person has no role there.") from None
