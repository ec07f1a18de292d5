"""Step 6: send the call upstream and relay the answer, as it arrives, to its last byte.

Before the first byte it refuses; after it, it returns an `Outcome` and raises nothing for what the network did.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy import _wire
from proxy._fastpath import now_ns
from proxy._scan import AnswerCounter, with_model, with_usage
from proxy._wire import Connection, Relay
from proxy.bounds import TEXT_BYTES_INLINE
from proxy.call import CLIENT_GONE_STATUS, Call, Outcome, Progress, Route, Termination
from proxy.errors import Refusal

if TYPE_CHECKING:
    from proxy.house import House

# How a relay that had begun ended, in the words of the usage row.
_TERMINATIONS: dict[int, Termination] = {
    _wire.COMPLETE: "complete",
    _wire.LOST: "upstream_error",
    _wire.PROTOCOL: "upstream_error",
    _wire.FIRST_BYTE_TIMEOUT: "timeout",
    _wire.IDLE_TIMEOUT: "timeout",
    _wire.TOTAL_TIMEOUT: "timeout",
    _wire.CLIENT_GONE: "client_gone",
    _wire.CLIENT_STALLED: "client_gone",
    _wire.CANCELLED: "client_gone",
    _wire.CUT: "budget_cut",
}
# Upstream refusals that are the client's own doing: passed on in the upstream's words.
_PASSED_ON = frozenset({400, 404, 405, 409, 413, 415, 422})
_RETRY_AFTER_SECONDS_MAX = 60  # an upstream's wish is clamped to what an SDK is willing to wait


def request_bytes(call: Call, route: Route) -> bytes:
    """The request as the upstream gets it: the client's own body, but for the spliced values that policy changes."""
    facts = call.facts
    body = call.body
    if facts.stream and route.ask_usage and not facts.usage_asked:
        body = with_usage(body, facts, route.model_literal)
    elif route.model_literal is not None:
        body = with_model(body, facts, route.model_literal)
    forward = call.head.forward + route.lines
    return route.pool.target.request(call.endpoint.suffix, forward, call.request_id.encode(), body)


def relay_for(call: Call, route: Route, done: asyncio.Future[None], house: House) -> Relay:
    """The relay of this call's answer, its deadlines those of the upstream."""
    exchange = call.exchange
    facts = call.facts
    tokenizer = call.grant.tokenizer
    encoding = tokenizer.encoding
    return Relay(
        exchange.write,
        exchange.buffered,
        exchange.paused,
        done,
        house.outbox,
        call.slot,
        call.arrived_ns,
        call.headers,
        http10=exchange.http10,
        close=exchange.close,
        hide_usage=facts.stream and route.ask_usage and not facts.usage_asked,
        hold_end=house.strict,
        first_byte_ms=route.first_byte_ms,
        idle_ms=route.idle_ms,
        total_ms=route.total_ms,
        counter=None if encoding is None else AnswerCounter(encoding),
        bytes_per_token_milli=tokenizer.bytes_per_token_milli,
    )


async def stream(call: Call, route: Route, house: House) -> None:
    """Sends the request, waits for the relay's end, and fills `call.outcome`. Raises Refusal before the first byte."""
    done = house.loop.create_future()
    relay = call.relay = relay_for(call, route, done, house)
    connection = route.pool.take() or await connect(call, route)
    call.slot.sent(1, route.sent)
    call.sent_ns = now_ns()
    try:
        try:
            connection.start(relay, request_bytes(call, route))
        except ConnectionError:
            # It closed between the pool and here, and nothing was written: a fresh one costs the client nothing.
            connection = await connect(call, route)
            connection.start(relay, request_bytes(call, route))
        call.body = b""
        call.exchange.forget_body()
        house.sweeper.add(relay)
        await done
    except ConnectionError:
        relay.cancel()
        raise Refusal("upstream_lost") from None
    except asyncio.CancelledError:
        # The client hung up: its front cancelled us. What was relayed until now stands in the row. There is no waiting
        # here: a text too long for the loop stays an estimate.
        relay.cancel()
        if relay.usage is None and relay.backlog <= TEXT_BYTES_INLINE:
            relay.finish_count()
        call.outcome = outcome_of(relay, "client_gone", relay.status if relay.started else CLIENT_GONE_STATUS)
        raise
    finally:
        call.exchange.started = relay.started
    ending = relay.ending
    if ending == _wire.COMPLETE:
        termination: Termination = "upstream_error" if relay.upstream_error else "complete"
        call.outcome = outcome_of(relay, termination, relay.status)
    elif call.ended is not None and ending in (_wire.CUT, _wire.CANCELLED):
        call.outcome = outcome_of(relay, "revoked", relay.status if relay.started else call.ended.kind.status)
        if not relay.started:
            raise call.ended
    elif relay.started:
        call.outcome = outcome_of(relay, _TERMINATIONS[ending], relay.status)
    else:
        refused = refusal_of(relay)
        termination = _TERMINATIONS.get(ending, "upstream_error")
        call.outcome = outcome_of(relay, termination, refused.kind.status if refused else relay.status)
        if refused is not None:
            try:
                raise refused
            finally:
                del refused  # its traceback has this frame: the two would keep the client's connection in memory
    if relay.usage is None and relay.backlog:
        await count_rest(call, relay, house)


async def connect(call: Call, route: Route) -> Connection:
    """A connection, once there is one. Raises Refusal, also when the call is ended while it waits."""
    task = call.connecting = asyncio.current_task()
    try:
        return await route.pool.connect()
    except asyncio.CancelledError:
        if call.ended is None:
            raise
        assert task is not None
        task.uncancel()
        raise call.ended from None
    finally:
        call.connecting = None


async def count_rest(call: Call, relay: Relay, house: House) -> None:
    """Counts the text of an ended answer that is not counted yet, and says so in the outcome; where it is long, in a
    thread. A client that leaves meanwhile changes nothing: the outcome from before stands, and is an estimate.
    """
    if relay.backlog <= TEXT_BYTES_INLINE:
        relay.finish_count()
    else:
        await house.aside(relay.finish_count)
    outcome = call.outcome
    assert outcome is not None
    call.outcome = outcome_of(relay, outcome.termination, outcome.status)


def outcome_of(relay: Relay, termination: Termination, status: int) -> Outcome:
    """What the relay counted, as an outcome."""
    usage = relay.usage
    prompt, cached, completion, reasoning, audio = usage if usage is not None else (0, 0, 0, 0, 0)
    return Outcome(
        termination,
        status,
        Progress(
            relay.frames,
            relay.bytes,
            relay.text_bytes,
            prompt,
            cached,
            completion,
            reasoning,
            audio,
            0 if usage is None else 1,
            relay.first_us,
            relay.status,
            relay.text_tokens,
            int(relay.text_estimated),
        ),
        relay.model,
        relay.upstream_request_id.decode("latin-1"),
        1,
    )


def refusal_of(relay: Relay) -> Refusal | None:
    """What the client is told of an answer that was not relayed. None: the upstream's own error is passed on."""
    ending = relay.ending
    if ending == _wire.ANSWERED:
        status = relay.status
        if status in _PASSED_ON:
            return None
        if status in (401, 403):
            return Refusal("upstream_refused_us")
        if status == 429:
            return Refusal("upstream_busy", retry_after_ms=retry_after_ms(relay))
        if status == 503:
            return Refusal("upstream_unavailable", retry_after_ms=retry_after_ms(relay))
        if status == 504 or status == 408:
            return Refusal("upstream_timeout")
        if status < 500:
            return Refusal("upstream_refused", str(status))
        return Refusal("upstream_failed", str(status))
    if ending == _wire.CODED:
        return Refusal("upstream_protocol", "a Content-Encoding, although identity was asked for")
    if ending == _wire.PROTOCOL:
        return Refusal("upstream_protocol", relay.detail)
    if ending in (_wire.FIRST_BYTE_TIMEOUT, _wire.IDLE_TIMEOUT, _wire.TOTAL_TIMEOUT):
        return Refusal("upstream_timeout")
    return Refusal("upstream_lost")


def retry_after_ms(relay: Relay) -> int:
    """The upstream's own wish in milliseconds, at most a minute. A date or nonsense is as good as none: one second."""
    for raw, unit in ((relay.retry_after_ms, 1), (relay.retry_after, 1000)):
        try:
            wish = float(raw)
        except ValueError:
            continue
        if wish * unit > 0:
            return int(min(wish * unit, _RETRY_AFTER_SECONDS_MAX * 1000)) or 1
    return 1000
