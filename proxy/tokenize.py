"""POST /v1/tokenize: how many tokens a prompt has, by what would reserve them. No row; nothing is sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from proxy import bounds
from proxy._fastpath import RATE_REQUESTS, ArenaFull, Limits
from proxy.accept import read_body
from proxy.authorise import authorise
from proxy.call import Call, Grant
from proxy.dialects import openai_chat as dialect
from proxy.errors import Refusal

if TYPE_CHECKING:
    from proxy._scan import Peek
    from proxy.house import House
    from proxy.policy.effective import Limit

# Whose arithmetic holds for what the body brings.
_PROMPTS = {"messages": "chat.completions", "prompt": "completions", "input": "embeddings"}


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
    tokenizer, facts = grant.tokenizer, call.facts
    asked = call.body, facts, endpoint_of(facts), call.known.principal.tenant
    found = tokenizer.prompt_now(*asked)
    tokens, source = await house.asked(tokenizer.prompt, *asked) if found is None else found
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
    grant.tokenizer = house.tokenizer(effective.model, call.known.principal.tenant)
    return grant.limits


def _entry(limit: Limit) -> tuple[int, bytes, int, int]:
    return RATE_REQUESTS, f"tokenize/{limit.scope}".encode(), limit.limit, limit.burst


def endpoint_of(facts: Peek) -> str:
    """The endpoint whose prompt a body has. Raises Refusal bad_value for a body with none, or with more than one."""
    found = facts.prompts
    if len(found) != 1:
        said = " and ".join(found) or "none"
        raise Refusal("bad_value", f"one of messages, prompt and input is expected, it has {said}", param="input")
    ((name, first),) = found.items()
    if first != "[" and (name == "messages" or first != '"'):
        kind = "a list" if name == "messages" else "text or a list"
        raise Refusal("bad_value", f"{name} must be {kind}", param=name)
    return _PROMPTS[name]
