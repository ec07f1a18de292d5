"""POST /v1/tokenize: how many tokens a prompt has, by what would reserve them. No row; nothing is sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from proxy import bounds
from proxy._fastpath import RATE_REQUESTS, ArenaFull, Limits
from proxy.accept import read_body
from proxy.authorise import authorise
from proxy.call import Call, Grant
from proxy.dialects import openai_chat as dialect
from proxy.errors import Refusal

if TYPE_CHECKING:
    from proxy.house import House
    from proxy.policy.effective import Limit

_ABSENT = msgspec.Raw(b"null")
# Whose arithmetic holds for what the body brings.
_PROMPTS = {"messages": "chat.completions", "prompt": "completions", "input": "embeddings"}


class _Asked(msgspec.Struct):
    """The body's prompts as they stand: `peek` has read them already, and here only their kind matters."""

    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT


async def tokenize(call: Call, house: House) -> None:
    """Answers with the count. Refuses what a call with this body would be refused for, but for its tokens."""
    await read_body(call)
    authorise(call, house.policy)
    grant = call.grant
    limits = grant.limits
    if limits is None:
        limits = bind(grant, call, house)
    if limits.acquire(call.arrived_ns, 0):
        raise Refusal(
            "rate_limit_exceeded",
            "questions for tokens are limited as calls are, by themselves",
            retry_after_ms=-(-limits.wait_ns // 1_000_000),
        )
    endpoint = endpoint_of(call.body)
    tokenizer, facts, tenant = grant.tokenizer, call.facts, call.known.principal.tenant
    if tokenizer.inline(facts):
        tokens, source = tokenizer.prompt(call.body, facts, endpoint, tenant)
    else:
        tokens, source = await house.asked(tokenizer.prompt, call.body, facts, endpoint, tenant)
    answer = {
        "object": "tokens",
        "model": facts.model,
        "tokens": tokens,
        "source": source,
        "tokenizer": tokenizer.name,
    }
    exchange = call.exchange
    lines = f"x-request-id: {call.request_id}\r\n{exchange.lines.decode('latin-1')}"
    exchange.answer(dialect.answer(200, lines, json.dumps(answer).encode(), close=exchange.close), close=exchange.close)


def bind(grant: Grant, call: Call, house: House) -> Limits:
    """As many questions a minute as calls, counted in cells of their own: to ask takes nothing from who calls.

    Where policy sets no limit of requests, TOKENIZE_PER_MINUTE_DEFAULT holds for each key.
    """
    effective = grant.effective
    assert effective.model is not None
    entries = [_entry(limit) for limit in effective.limits if limit.kind == "requests_per_minute"]
    if not entries:
        scope = f"tokenize/key/{call.known.principal.key_id}"
        entries = [(RATE_REQUESTS, scope.encode(), bounds.TOKENIZE_PER_MINUTE_DEFAULT, 0)]
    try:
        grant.limits = Limits(house.arena, entries)
    except ArenaFull:
        raise Refusal("limits_full", retry_after_ms=1000) from None
    grant.tokenizer = house.tokenizer(effective.model)
    return grant.limits


def _entry(limit: Limit) -> tuple[int, bytes, int, int]:
    return RATE_REQUESTS, f"tokenize/{limit.scope}".encode(), limit.limit, limit.burst


def endpoint_of(body: bytes) -> str:
    """The endpoint whose prompt this is. Raises Refusal bad_value for a body with none, or with more than one."""
    asked = msgspec.json.decode(body, type=_Asked)
    values = {name: bytes(getattr(asked, name)) for name in _PROMPTS}
    found = [name for name, value in values.items() if value != b"null"]
    if len(found) != 1:
        said = " and ".join(found) or "none"
        raise Refusal("bad_value", f"one of messages, prompt and input is expected, it has {said}", param="input")
    (name,) = found
    if values[name][:1] != b"[" and (name == "messages" or values[name][:1] != b'"'):
        kind = "a list" if name == "messages" else "text or a list"
        raise Refusal("bad_value", f"{name} must be {kind}", param=name)
    return _PROMPTS[name]
