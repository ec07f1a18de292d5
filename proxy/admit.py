"""Step 4: count the prompt, take from every limit what the call may need, open it in the journal. All or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy import bounds, failpoint
from proxy._fastpath import CONCURRENCY, RATE_REQUESTS, RATE_TOKENS, ArenaFull, Limits
from proxy.authorise import authorise
from proxy.call import Call, Grant, Opened
from proxy.clock import wall_us
from proxy.errors import Refusal
from proxy.identify import look_up
from proxy.policy.snapshot import Policy
from proxy.record import cut, encode_opened

if TYPE_CHECKING:
    from proxy.house import House

_KINDS = {"requests_per_minute": RATE_REQUESTS, "tokens_per_minute": RATE_TOKENS, "concurrency": CONCURRENCY}
_REFUSALS = {
    "requests_per_minute": "rate_limit_exceeded",
    "tokens_per_minute": "token_limit_exceeded",
    "concurrency": "concurrency_exceeded",
}
_CONCURRENCY_RETRY_MS = 250  # when a place will be free is not known: soon, as calls go


def count(call: Call, house: House) -> bool:
    """Fills the prompt's tokens. False when the text is too long for the loop: then await `count_aside`."""
    grant = call.grant
    if grant.limits is None:
        bind(call, house)
    tokenizer = grant.tokenizer
    if not tokenizer.inline(call.facts):
        return False
    tenant = call.known.principal.tenant
    call.prompt_tokens, call.prompt_source = tokenizer.prompt(call.body, call.facts, call.endpoint.name, tenant)
    return True


async def count_aside(call: Call, house: House) -> None:
    """The same in a thread. Nothing is held yet: a client that leaves meanwhile leaves nothing behind."""
    call.prompt_tokens, call.prompt_source = await house.aside(
        call.grant.tokenizer.prompt, call.body, call.facts, call.endpoint.name, call.known.principal.tenant
    )


async def judge_again(call: Call, house: House, policy: Policy) -> None:
    """What was judged while the body was on its way is judged by the key as it is now. Raises Refusal."""
    await look_up(call, house.gate)
    authorise(call, policy)
    if call.grant.limits is None:
        bind(call, house)


def admit(call: Call, house: House) -> None:
    """Holds requests, tokens and concurrency, and opens the call's slot. Raises Refusal and then holds nothing."""
    grant = call.grant
    limits = grant.limits
    assert limits is not None
    prompt = call.prompt_tokens
    burst = grant.token_burst
    if prompt > burst:
        about = "" if call.prompt_source == "counted" else "about "
        raise Refusal("request_too_large", f"{about}{prompt} tokens against at most {burst} at once")
    reserved = min(prompt + answer_bound(call), burst)
    refusing = limits.acquire(call.arrived_ns, reserved)
    if refusing:
        raise over_limit(grant, limits, refusing, call.arrived_ns)
    opened = call.opened = opened_record(call)
    slot = house.epoch.open(encode_opened(opened), limits.holds)
    if slot is None:
        limits.refund(call.arrived_ns, reserved)
        raise Refusal("journal_full", retry_after_ms=1000)
    failpoint.reach("admit.after_store")
    call.slot = slot
    house.running.enter(call)
    call.reserved_tokens = reserved
    said = call.exchange.lines
    call.headers = b"x-request-id: %b\r\n%b%b" % (call.request_id.encode(), said, limits.headers(call.arrived_ns))


def answer_bound(call: Call) -> int:
    """The most tokens the answer may have, as far as the call or the model's policy says."""
    if call.endpoint.name == "embeddings":
        return 0
    facts = call.facts
    asked = facts.answer_tokens
    return (asked if asked >= 0 else call.grant.answer_tokens_default) * facts.choices


def bind(call: Call, house: House) -> None:
    """Finds the grant's cells, routes and tokenizer, once. Raises Refusal limits_full when the arena has no room."""
    grant = call.grant
    effective = grant.effective
    try:
        limits = Limits(
            house.arena,
            [(_KINDS[limit.kind], limit.scope.encode(), limit.limit, limit.burst) for limit in effective.limits],
        )
    except ArenaFull:
        raise Refusal("limits_full", retry_after_ms=1000) from None
    assert effective.model is not None
    grant.routes = house.routes(effective.model, call.known.principal.tenant)
    grant.tokenizer = house.tokenizer(effective.model)
    grant.answer_tokens_default = effective.model.answer_tokens_default
    grant.token_burst = limits.token_burst()
    grant.limits = limits


def over_limit(grant: Grant, limits: Limits, refusing: int, now_ns: int) -> Refusal:
    """The refusal that names the limit which refused, and when it could pass."""
    limit = grant.effective.limits[refusing - 1]
    words = limit.kind.replace("_", " ")
    wait_ms = -(-limits.wait_ns // 1_000_000) or _CONCURRENCY_RETRY_MS
    return Refusal(
        _REFUSALS[limit.kind],
        f"{limit.limit} {words} for this {limit.level}",
        retry_after_ms=wait_ms,
        headers=limits.headers(now_ns),
    )


def opened_record(call: Call) -> Opened:
    """What the row must know if this process dies now. Cut to the bounds, so that it always fits its slot."""
    principal = call.known.principal
    facts = call.facts
    tags = principal.tags
    effective = call.grant.effective
    if effective.tenant is not None and effective.tenant.tag_header is not None:
        tags = (*tags, *header_tag(call, effective.tenant.tag_header))
    price = effective.model.price if effective.model is not None else None
    user = principal.user or facts.user or ""
    return Opened(
        principal.tenant,
        principal.key_id,
        cut(user, bounds.USER_BYTES_MAX),
        tags,
        call.request_id[: bounds.REQUEST_ID_BYTES_KEPT],
        call.endpoint.name,
        facts.model or "",
        facts.stream,
        call.prompt_tokens,
        call.prompt_source,
        wall_us(),
        *((0, 0, 0, "") if price is None else (price.prompt, price.cached, price.completion, price.version)),
        call.grant.tokenizer.reasoning,
    )


def header_tag(call: Call, name: str) -> tuple[tuple[str, str], ...]:
    """The tag that this tenant lets its callers set by a header, under the header's name."""
    wanted = name.encode()
    for header, value in call.exchange.raw_headers:
        if header.lower() == wanted:
            tag = cut(value.decode("utf-8", "replace"), bounds.TAG_BYTES_MAX)
            return ((cut(name, bounds.TAG_HEADER_BYTES_MAX), tag),)
    return ()
