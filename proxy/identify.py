"""Step 2: whose credential is this? Nothing is asked of the network for one that this worker knows."""

from __future__ import annotations

from functools import lru_cache

from proxy import board, bounds
from proxy._fastpath import wall_us
from proxy.call import Call
from proxy.errors import Refusal
from proxy.identity.addresses import within
from proxy.identity.gate import Gate
from proxy.identity.keys import Known
from proxy.identity.tenancy import TENANT, asked_for, resolve
from proxy.telemetry.log import timestamp

_SOON_US = bounds.KEY_SOON_SECONDS * 1_000_000


def identify(call: Call, gate: Gate) -> bool:
    """Fills `call.known` from memory. False when somebody must be asked: then await `look_up`.

    A token has dots and a key has none.
    """
    head = call.head
    secret = head.authorization
    if secret is None:
        raise Refusal("missing_key")
    if gate.trusted:
        gate.client(call.exchange)  # a chain that cannot be read is refused whoever sends it
    if gate.refuse_stale and board.keys_stale(gate.keys.arena, call.arrived_ns):
        raise Refusal("keys_unchecked", retry_after_ms=1000)
    asked = head.tenant if gate.domain is None else asked_for(head.tenant, head.host, gate.domain)
    tokens = gate.tokens
    try:
        if tokens is not None and b"." in secret:
            known = tokens.known(secret, asked, call.arrived_ns)
            if known is None:
                return False
            enter(call, known, known.lines)
        else:
            known = gate.keys.known(secret)
            if known is None:
                return False
            enter(call, known, judge(call, known, asked, gate))
    except Refusal as refusal:
        raise gate.refused(refusal, call.exchange) from None
    return True


async def look_up(call: Call, gate: Gate) -> None:
    """Fills `call.known` from the database and, for a token, by its issuer's keys."""
    head = call.head
    secret = head.authorization
    assert secret is not None
    asked = asked_for(head.tenant, head.host, gate.domain)
    tokens = gate.tokens
    try:
        if tokens is not None and b"." in secret:
            if not tokens.met(secret):
                gate.wait_turn(call.exchange)
            known = await tokens.look_up(secret, asked)
            enter(call, known, known.lines)
        else:
            if not gate.keys.met(secret):
                gate.wait_turn(call.exchange)
            known = await gate.keys.look_up(secret)
            enter(call, known, judge(call, known, asked, gate))
    except Refusal as refusal:
        raise gate.refused(refusal, call.exchange) from refusal.__cause__


def judge(call: Call, known: Known, asked: bytes | None, gate: Gate) -> bytes:
    """What holds for a known key on this very request: its time, where it is used, and the tenant that is asked for.

    Returns the header lines of every answer to it. The log says whose key it was, also where it is refused.
    """
    call.known = known
    principal = known.principal
    lines = known.lines
    ends_us = principal.expires_us
    if ends_us is not None:
        left_us = ends_us - wall_us()
        if left_us <= 0:
            raise Refusal("expired_api_key")
        if left_us <= _SOON_US:
            lines += _ends(ends_us)
    if known.blocks is not None and not within(gate.client(call.exchange), known.blocks):
        raise Refusal("address_not_allowed")
    if asked is not None:
        resolve((principal.tenant,), asked)
    return lines


def enter(call: Call, known: Known, lines: bytes) -> None:
    """From here on the call is somebody's: its answers and the log say whose."""
    call.known = known
    call.exchange.lines = lines
    TENANT.set(known.principal.tenant)


@lru_cache(maxsize=1024)
def _ends(ends_us: int) -> bytes:
    return f"x-weir-key-expires: {timestamp(ends_us)}\r\n".encode()
