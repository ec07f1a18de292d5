"""What one worker owns and every call uses: policy, keys, limits, journal, pools, counters."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import ParamSpec, TypeVar

from proxy import board, bounds
from proxy._fastpath import Arena, now_ns
from proxy._wire import Outbox, Sweeper
from proxy.call import Call, Route, Sent
from proxy.clock import wall_us
from proxy.errors import Refusal
from proxy.identity.gate import Gate
from proxy.identity.keys import Keys
from proxy.identity.tokens import Tokens
from proxy.journal import Epoch
from proxy.policy.snapshot import Model, Policy, Upstream
from proxy.record import cut, encode_sent
from proxy.running import Running
from proxy.telemetry.calls import CallMetrics
from proxy.telemetry.log import Lines, Refused
from proxy.tokens.tokenizer import Tokenizer, Tokenizers
from proxy.upstreams.pool import Pool
from proxy.upstreams.target import Target, target_of

P = ParamSpec("P")
T = TypeVar("T")
UPSTREAM_BYTES_KEPT = 32
SERVED_BYTES_KEPT = 56


def request_ids() -> Iterator[str]:
    """Ids without end, 28 characters each: unique, and telling nothing of whom they are for."""
    begin = f"req_{secrets.token_hex(8)}"
    tails = [f"{number:03x}" for number in range(4096)]  # to join texts is quicker than to write numbers
    for block in count():
        stem = f"{begin}{block:05x}"
        for tail in tails:
            yield stem + tail


class House:
    """Built by `wiring`; one to a worker. `policy` is swapped whole by `adopt`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        policy: Policy,
        keys: Keys,
        epoch: Epoch,
        make_pool: Callable[[Upstream, Target], Pool],
        metrics: CallMetrics,
        lines: Lines,
        *,
        strict: bool,
        tokens: Tokens | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.loop = loop
        self.keys = keys
        self.tokens = tokens
        self.gate = gate or Gate(keys, tokens)
        self.epoch = epoch
        self.arena: Arena = epoch.arena
        self.running = Running(loop, self.arena, keys, tokens)
        self.metrics = metrics
        self.lines = lines
        self.strict = strict
        self.sweeper = Sweeper(loop)
        self.outbox = Outbox(loop.call_soon)
        self._make_pool = make_pool
        self._pools: dict[str, tuple[Upstream, Pool]] = {}
        self._tokenizers = Tokenizers()
        # A long text is counted beside the loop. Who only asks for a count has a thread apart, and slows no call.
        self._counting = ThreadPoolExecutor(bounds.COUNTING_THREADS, "weir-count")
        self._asked = ThreadPoolExecutor(1, "weir-asked")
        #: a request id for a client that sent none
        self.next_request_id: Callable[[], str] = request_ids().__next__
        self._counted: dict[str, int] = {}  # connections made, as far as the counters know
        self.policy = policy
        self.adopt(policy)

    def adopt(self, policy: Policy) -> None:
        """Takes a new policy for the calls to come. Pools of upstreams that did not change keep their connections.

        Calls in flight keep the pool they were given; it closes its connections as they come back. Raises SecretMissing
        or ValueError for an upstream that cannot be used; then nothing has changed.
        """
        pools: dict[str, tuple[Upstream, Pool]] = {}
        for name, upstream in policy.upstreams.items():
            # The reference to a credential may be the same, and what it names another one.
            target = target_of(upstream)
            known = self._pools.get(name)
            if known is not None and known[0] == upstream and known[1].target.same_as(target):
                pools[name] = known
            else:
                pools[name] = (upstream, self._make_pool(upstream, target))
        for name, (_, pool) in self._pools.items():
            if name not in pools or pools[name][1] is not pool:
                pool.retire()
                self._counted.pop(name, None)
        self._pools = pools
        if self.tokens is not None:
            self.tokens.adopt(policy.issuers)
        self.gate.refuse_stale = policy.identity.on_stale == "refuse"
        self.policy = policy

    def routes(self, model: Model, tenant: str) -> tuple[Route, ...]:
        """The model's targets, each with its pool. A target without a model name of its own passes the client's on.

        tenant: whose calls go there, for upstreams that are told.
        """
        routes = []
        for target in model.targets:
            if not target.weight:
                continue
            upstream, pool = self._pools[target.upstream]
            name = target.model or model.name
            facts = Sent(cut(target.upstream, UPSTREAM_BYTES_KEPT), cut(name, SERVED_BYTES_KEPT))
            route = Route(facts, encode_sent(facts), pool, upstream, target)
            if upstream.tenant_header is not None:
                route.lines = f"{upstream.tenant_header}: {tenant}\r\n".encode()
            if name != model.name:
                route.model_literal = json.dumps(name).encode()
            routes.append(route)
        return tuple(routes)

    def tokenizer(self, model: Model, tenant: str) -> Tokenizer:
        """What counts this model's tokens for this tenant."""
        return self._tokenizers.of(model, tenant)

    async def aside(self, work: Callable[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Runs a count in a thread, for a call."""
        return await self.loop.run_in_executor(self._counting, partial(copy_context().run, work, *args))

    async def asked(self, work: Callable[P, T], *args: P.args, **_: P.kwargs) -> T:
        """The same for a client that asked for nothing but the count."""
        return await self.loop.run_in_executor(self._asked, partial(copy_context().run, work, *args))

    def pools(self) -> list[Pool]:
        """Every pool in use now."""
        return [pool for _, pool in self._pools.values()]

    def readiness(self) -> tuple[int, str]:
        """Status and word for /readyz on the worker's own port, from the board that all processes share."""
        arena = self.arena
        if arena.word(board.DRAINING):
            return 503, "draining"
        stale = board.keys_stale(arena, now_ns())
        if stale and arena.word(board.KEYS_ON_STALE) == board.REFUSE:
            return 503, "keys unchecked"
        away = [
            name
            for name, word in (("redis", board.REDIS_STATE), ("database", board.DATABASE_STATE))
            if arena.word(word) == board.AWAY
        ]
        parts = [f"{' and '.join(away)} away"] if away else []
        if stale:
            parts.append("keys unchecked")
        return 200, f"degraded: {', '.join(parts)}" if parts else "ok"

    def note_refusal(self, refusal: Refusal, call: Call | None, request_id: str, arrived_ns: int) -> None:
        """Counts a refusal by its reason, and logs it unless the call has a row and so a line of its own."""
        self.metrics.refuse(refusal.code)
        if call is not None and call.outcome is not None:
            return
        known = getattr(call, "known", None)
        facts = getattr(call, "facts", None)
        total_us = (now_ns() - arrived_ns) // 1000
        self.lines.refused(
            Refused(
                reason=refusal.code,
                status=refusal.kind.status,
                endpoint=call.endpoint.name if call is not None else "",
                tenant=known.principal.tenant if known is not None else "",
                key_id=known.principal.key_id if known is not None else "",
                model=cut(facts.model or "", bounds.MODEL_BYTES_MAX) if facts is not None else "",
                request_id=request_id[: bounds.REQUEST_ID_BYTES_KEPT],
                started_us=wall_us() - total_us,
                total_us=total_us,
            )
        )

    def count_connections(self) -> None:
        """With each heartbeat: how many connections each upstream has."""
        for name, (_, pool) in self._pools.items():
            self.metrics.connections(name, pool.active + pool.idle, pool.made - self._counted.get(name, 0))
            self._counted[name] = pool.made

    def close(self) -> None:
        """Closes what holds sockets and timers. The epoch is the worker's to finish."""
        self.sweeper.close()
        self._counting.shutdown(wait=False, cancel_futures=True)
        self._asked.shutdown(wait=False, cancel_futures=True)
        for pool in self.pools():
            pool.close()


# The two names and their msgpack headers, in the slot's place for them.
assert UPSTREAM_BYTES_KEPT + SERVED_BYTES_KEPT + 5 <= bounds.SENT_BYTES_MAX
