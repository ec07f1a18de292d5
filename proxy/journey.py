"""The life of a request, on one screen. docs/life-of-a-request.md tells the same story in the same eight words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy import answer
from proxy.accept import accept, read_body, refuse
from proxy.admit import admit, count, count_aside, judge_again
from proxy.authorise import authorise
from proxy.errors import Refusal
from proxy.exchange import Exchange
from proxy.identify import identify, look_up
from proxy.meter import client_gone, meter, refused
from proxy.route import choose
from proxy.stream import stream

if TYPE_CHECKING:
    from proxy.house import House


async def serve(exchange: Exchange, house: House) -> None:
    """One request, from its first byte to its row. Returns when the answer's last byte is written."""
    policy = house.policy  # one snapshot per request: a reload changes the next one
    request_id = ""
    call = None
    try:
        call = accept(exchange, house.next_request_id)  # 1
        request_id = call.request_id
        if not call.endpoint.suffix:
            await answer.own(call, house)
            return
        if not identify(call, house.gate):  # 2
            await look_up(call, house.gate)
        await read_body(call)
        authorise(call, policy)  # 3
        if not count(call, house):
            await count_aside(call, house)
        if not house.running.current(call):  # a key may have ended while the body came
            await judge_again(call, house, policy)
        admit(call, house)  # 4: from here on something is held, and there will be a row
        try:
            call.route = choose(call.grant.routes, call.slot.call)  # 5
            await stream(call, call.route, house)  # 6
        except Refusal as refusal:
            refused(call, refusal)
            raise
        except asyncio.CancelledError:
            client_gone(call)
            raise
        finally:
            meter(call, house)  # 7: never awaits, so nothing can interrupt it
        await answer.end(call, house)
    except Refusal as refusal:
        request_id = request_id or house.next_request_id()
        house.note_refusal(refusal, call, request_id, exchange.arrived_ns)
        refuse(exchange, refusal, request_id)
