"""What every operation of the admin API works with, and how one asks and answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from proxy.control.callers import Caller, Callers
from proxy.control.cursors import Cursors
from proxy.control.nouns import Paged
from proxy.control.policies import Policies
from proxy.control.problems import Problem
from proxy.control.signing import SignIns
from proxy.control.table import Operation
from proxy.identity.actor import By
from proxy.identity.desk import Desk
from proxy.identity.roles import Action, Actor, Forbidden, reach
from proxy.settings import Settings
from proxy.store.store import Once, Store

T = TypeVar("T")
_BUSY = {"retry-after": "5"}


class Office:
    """Built by the verb `control`; one to a process."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        desk: Desk,
        policies: Policies,
        callers: Callers,
        cursors: Cursors,
        sign_ins: SignIns,
    ) -> None:
        self.settings = settings
        self.store = store
        self.desk = desk
        self.policies = policies
        self.callers = callers
        self.cursors = cursors
        self.sign_ins = sign_ins
        self._reading = asyncio.Lock()

    @asynccontextmanager
    async def whole_log(self) -> AsyncIterator[Store]:
        """A database for who reads all of a table: apart, without a bound on its statements, one at a time."""
        if self._reading.locked():
            raise Problem(503, "busy", "Somebody else reads the whole log just now.", headers=_BUSY)
        async with self._reading:
            store = Store.open(self.settings.database, readonly=True, patient=True)
            try:
                yield store
            finally:
                await store.close()


class Ask:
    """One request, read and known to be of `caller`. `query` and `body` are of the operation's own types."""

    def __init__(
        self,
        operation: Operation,
        names: dict[str, str],
        caller: Caller | None,
        peer: str,
        *,
        query: Any = None,
        body: Any = None,
        match: str | None = None,
        fresh: bool = False,
        once: Once | None = None,
        by: By | None = None,
    ) -> None:
        self.operation = operation
        self.names = names
        self.caller = caller
        self.peer = peer
        self.query = query
        self.body = body
        self.match = match  # If-Match
        self.fresh = fresh  # If-None-Match: *
        self.once = once
        self._by = by

    @property
    def actor(self) -> Actor:
        """Who acts; only for operations that are not open."""
        assert self.caller is not None
        return self.caller.actor

    @property
    def by(self) -> By:
        """The same, as the writers are told."""
        assert self._by is not None
        return self._by

    def keep(self, answer: Callable[[Any], Struct | None]) -> None:
        """What to answer when this request comes again, from what the writer returns. It holds no secret."""
        if self.once is not None:
            self.once.answer = lambda result: encode(answer(result))


class Answer(Struct, frozen=True):
    """`lines`: a body that is written piece by piece."""

    said: Struct | None = None
    etag: str | None = None
    lines: AsyncGenerator[bytes, None] | None = None


Handler = Callable[[Office, Ask], Awaitable[Answer]]


def encode(said: Struct | None) -> bytes:
    """The body of an answer."""
    return b"" if said is None else msgspec.json.encode(said)


def where(actor: Actor, action: Action, tenant: str | None) -> tuple[str | None, str | None]:
    """(tenant, owner) that a list is narrowed to for this actor; None is everything. Raises Forbidden.

    A tenant that is not the actor's own is refused whether there is one of that name or not.
    """
    far = reach(actor, action)
    if far is None or (far != "all" and tenant not in (None, actor.tenant)):
        raise Forbidden(action)
    if far == "all":
        return tenant, None
    return actor.tenant, actor.id if far == "own" else None


async def page(
    office: Office,
    ask: Ask,
    bound: tuple[Any, ...],
    fetch: Callable[[tuple[Any, ...] | None, int], Awaitable[Sequence[T]]],
    position: Callable[[T], tuple[Any, ...]],
) -> tuple[list[T], str | None]:
    """One page of rows and the cursor of the next. `bound`: whatever narrows the list; `fetch` takes (after, limit)."""
    asked: Paged = ask.query
    sealed = (ask.operation.id, *bound)
    after = office.cursors.open(sealed, asked.cursor)
    rows = list(await fetch(after, asked.limit + 1))
    if len(rows) <= asked.limit:
        return rows, None
    rows = rows[: asked.limit]
    return rows, office.cursors.seal(sealed, position(rows[-1]))
