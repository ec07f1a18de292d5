"""What Weir answers itself: model list, count of tokens, an upstream's error passed on, the end of a relayed answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import unquote

from proxy import _wire
from proxy.call import Call
from proxy.dialects import openai_chat as dialect
from proxy.errors import Refusal
from proxy.identify import identify, look_up
from proxy.policy.effective import visible_models
from proxy.policy.snapshot import Policy
from proxy.tokenize import tokenize

if TYPE_CHECKING:
    from proxy.house import House

_CREATED = 0  # when a public model name was made is nobody's business; the SDK wants a number


async def own(call: Call, house: House) -> None:
    """What Weir answers without an upstream."""
    if call.endpoint.name == "health":
        health(call, house)
        return
    if not identify(call, house.gate):
        await look_up(call, house.gate)
    if call.endpoint.name == "tokenize":
        await tokenize(call, house)
        return
    models(call, house.policy)


def health(call: Call, house: House) -> None:
    """/healthz: this worker answers. /readyz: it may be sent traffic; `degraded` names what is away meanwhile."""
    exchange = call.exchange
    status, text = (200, "ok") if exchange.raw_path == "/healthz" else house.readiness()
    body = json.dumps({"status": text}).encode()
    exchange.answer(dialect.answer(status, "", body, close=exchange.close), close=exchange.close)


def models(call: Call, policy: Policy) -> None:
    """GET /v1/models and /v1/models/{id}: what this key may use. Another's model does not exist."""
    exchange = call.exchange
    names = visible_models(policy, call.known.principal)
    if call.endpoint is dialect.MODEL:
        # The one part of a path that is decoded: the SDKs write `org/model` as `org%2Fmodel`.
        name = unquote(exchange.raw_path[len(dialect.MODEL_PREFIX) :])
        if name not in names:
            raise Refusal("model_not_found", ascii(name[:80]), param="model")
        body = dialect.model_body(name, _CREATED)
    else:
        body = dialect.model_list(names, _CREATED)
    lines = f"x-request-id: {call.request_id}\r\n{exchange.lines.decode('latin-1')}"
    exchange.answer(dialect.answer(200, lines, body, close=exchange.close), close=exchange.close)


async def end(call: Call, house: House) -> None:
    """The last act after the row is in the journal: let the client have its end, or make sure it cannot mistake one."""
    relay = call.relay
    assert relay is not None
    if relay.ending == _wire.COMPLETE:
        if house.strict:
            await house.epoch.wait_synced(call.seq)
            relay.release_end()
    elif relay.started:
        if not relay.cut_clean:
            call.exchange.abort()
    else:
        passed_on(call)


def passed_on(call: Call) -> None:
    """An upstream's refusal of this very request, in the upstream's words: the client can mend it, Weir cannot."""
    relay = call.relay
    assert relay is not None
    lines = call.headers.decode("latin-1") + "x-weir-error: upstream\r\n"
    # A retry would be refused again; 408 and 409 are statuses that the SDKs would otherwise retry.
    lines += f"x-should-retry: {'true' if relay.should_retry == b'true' else 'false'}\r\n"
    call.exchange.answer(
        dialect.answer(
            relay.status,
            lines,
            relay.error_body,
            close=call.exchange.close,
            content_type=relay.error_type.decode("latin-1") or "application/json",
        ),
        close=call.exchange.close,
    )
