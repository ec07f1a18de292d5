"""The calls that run in this worker, and their end when their credential ends.

A call is entered when it is admitted and left when it is metered. After a change of keys or people the database is
asked about the credentials of those that run, before anything else: they are few, and they cost money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from proxy import board, bounds
from proxy._fastpath import Arena
from proxy.call import Call
from proxy.dialects import openai_chat as dialect
from proxy.errors import Refusal
from proxy.identity.keys import Keys
from proxy.identity.tokens import Tokens
from proxy.policy.snapshot import Policy

if TYPE_CHECKING:
    from proxy.identity.keys import Credential

_AT_ONCE = 100  # calls that are ended before other calls have their turn: about a millisecond


class Running:
    """One to a worker. `policy` says what becomes of calls whose credential has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, arena: Arena, keys: Keys, tokens: Tokens | None) -> None:
        self._loop = loop
        self._arena = arena
        self._keys = keys
        self._tokens = tokens
        self._calls: set[Call] = set()
        self._seen = arena.word(board.KEYS_GENERATION)  # nothing runs yet whose credential could have ended

    def __repr__(self) -> str:
        return f"[Running: {len(self._calls)} calls]"

    def current(self, call: Call) -> bool:
        """Whether no key has changed since this call's credential was looked up."""
        return call.known.generation == self._arena.word(board.KEYS_GENERATION)

    def enter(self, call: Call) -> None:
        """The call is admitted: from here on it can be ended.

        It is `current`, or `look_again` was called, since the last look: the loop has had no turn in between.
        """
        self._calls.add(call)

    def look_again(self) -> None:
        """A change overtook a look-up: whoever enters by it is looked at with the next turn."""
        self._seen = -1

    def leave(self, call: Call) -> None:
        """The call is over. One that never entered is none the worse for it."""
        self._calls.discard(call)

    async def look(self, policy: Policy) -> None:
        """Ends what runs by a credential that has ended. Quick when nothing has changed.

        What the database could not be asked is asked with the next call of this.
        """
        # The word is read before the table: a change between the two is another turn's.
        generation = self._arena.word(board.KEYS_GENERATION)
        if generation == self._seen:
            return
        doubtful: dict[Credential, list[Call]] = {}
        for call in self._calls:
            if call.known.generation < generation and policy.on_revoke(call.known.principal.tenant) == "cut":
                doubtful.setdefault(call.known.credential, []).append(call)
        self._seen = generation
        try:
            for ended in await self._ended_among(list(doubtful)):
                await self._end(doubtful[ended], "credential_revoked")
        except Exception:
            # Whatever it was: these calls may not be forgotten.
            self._seen = -1

    async def adopt(self, policy: Policy) -> None:
        """Ends what runs for a tenant that the new policy has suspended or does not have."""
        ended = [
            call
            for call in self._calls
            if (tenant := policy.tenants.get(call.known.principal.tenant)) is None or tenant.status == "suspended"
            if policy.on_revoke(call.known.principal.tenant) == "cut"
        ]
        await self._end(ended, "tenant_suspended")

    async def _ended_among(self, credentials: list[Credential]) -> list[Credential]:
        """Those that the database no longer knows as good. Raises what the database raises."""
        ended: list[Credential] = []
        digests = [each for each in credentials if isinstance(each, bytes)]
        identities = [each for each in credentials if not isinstance(each, bytes)]
        at_once = bounds.KEYS_RENEWED_AT_ONCE
        for start in range(0, len(digests), at_once):
            ended += await self._keys.ended_among(digests[start : start + at_once])
        for start in range(0, len(identities), at_once):
            if self._tokens is not None:
                ended += await self._tokens.ended_among(identities[start : start + at_once])
        return ended

    async def _end(self, calls: Iterable[Call], code: str) -> None:
        for count, call in enumerate(calls, 1):
            if call in self._calls:  # else it ended by itself meanwhile
                self._cut(call, Refusal(code))
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)

    def _cut(self, call: Call, refusal: Refusal) -> None:
        """Ends one call: by an error frame where a stream has begun, else by the refusal. Its step does the rest."""
        call.ended = refusal
        if call.connecting is not None:
            call.connecting.cancel()
        elif call.relay is not None:
            call.relay.cut(dialect.error_frame(refusal))
            # The rest of a half sent frame may never come.
            self._loop.call_later(bounds.KEYS_CUT_SECONDS, call.relay.cancel)
