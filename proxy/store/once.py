"""Requests that may be sent again: the answer to a change is kept in the very transaction that made it.

So a request that is repeated with its key finds either nothing, and is done, or the first one's answer; there is no
state in between that a process could die in. Whoever comes while the first is at work waits for it at the head row of
the audit log, as every writer does. Answers hold no secret.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy import bounds
from proxy.identity.actor import By
from proxy.store.schema import idempotency


class Repeated(Exception):
    """The request was done before; `answer` is what was kept of its answer."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("done before")
        self.answer = answer


class OtherRequest(Exception):
    """The key stands for another request."""


class Once:
    """One request under its key. `caller` and `operation` are part of its name; `request` is its digest, 32 bytes.

    answer: makes what is kept from what the writer returns. It is called for each transaction of a change that takes
    several, and must then speak of all of them.
    """

    def __init__(
        self,
        caller: str,
        operation: str,
        key: str,
        request: bytes,
        now_us: int,
        answer: Callable[[Any], bytes] | None = None,
    ) -> None:
        self.caller = caller
        self.operation = operation
        self.key = key
        self.request = request
        self.now_us = now_us
        self.answer = answer
        self.kept = False  # by an earlier transaction of the same change

    async def recall(self, connection: AsyncConnection) -> None:
        """Raises Repeated when it was done, OtherRequest when the key stands for something else."""
        if self.kept:
            return
        over = self.now_us - bounds.IDEMPOTENCY_SECONDS * 1_000_000
        await connection.execute(delete(idempotency).where(idempotency.c.at_us <= over))
        row = (await connection.execute(select(idempotency).where(*self._name()))).first()
        if row is None:
            return
        if bytes(row.request) != self.request:
            raise OtherRequest
        raise Repeated(bytes(row.answer))

    async def keep(self, connection: AsyncConnection, result: Any) -> None:
        """Keeps the answer, in the transaction that makes it true."""
        answer = b"" if self.answer is None else self.answer(result)
        if self.kept:
            await connection.execute(update(idempotency).where(*self._name()).values(answer=answer))
            return
        values: dict[str, Any] = {"caller": self.caller, "operation": self.operation, "key": self.key}
        values |= {"request": self.request, "answer": answer, "at_us": self.now_us}
        await connection.execute(insert(idempotency).values(values))

    def _name(self) -> tuple[Any, ...]:
        table = idempotency.c
        return table.caller == self.caller, table.operation == self.operation, table.key == self.key


class ByOnce(By, frozen=True):
    """An actor whose request is to be done once, however often it is sent."""

    once: Once
