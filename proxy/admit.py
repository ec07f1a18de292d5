"""Step 4: count the prompt, take from every limit what the call may need, open it in the journal. All or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy import bounds, failpoint
from proxy._fastpath import CONCURRENCY, RATE_REQUESTS, RATE_TOKENS, ArenaFull, Limits, wall_us
from proxy.authorise import authorise
from proxy.call import Call, Grant, Opened
from proxy.errors import Refusal
from proxy.identify import look_up
from proxy.policy.snapshot import Policy, Price
from proxy.record import cut, encode_opened

if TYPE_CHECKING:
    from proxy.house import House

_KINDS = {"requests_per_minute": RATE_REQUESTS, "tokens_per_minute": RATE_TOKENS, "concurrency": CONCURRENCY}
_REFUSALS = {
    "requests_per_minute": "rate_limit_exceeded",
    "tokens_per_minute": "token_limit_exceeded",
    "concurrency": "concurrency_exceeded",
}
_UNPRICED = Price(0, 0, 0, "", "")
_CONCURRENCY_RETRY_MS = 250  # when a place will be free is not known: soon, as calls go


def count(call: Call, house: House) -> bool:
    """Fills the prompt's tokens. False when the text is too long for the loop: then await `count_aside`."""
    grant = call.grant
    if grant.limits is None:
        bind(call, house)
    found = grant.tokenizer.prompt_now(call.body, call.facts, call.endpoint.name, call.known.principal.tenant)
    if found is None:
        return False
    call.prompt_tokens, call.prompt_source = found
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
    if not house.running.current(call):
        house.running.look_again()


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
    reserved = prompt + answer_bound(call)
    if reserved > burst:
        reserved = burst
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
    request_id, said = call.request_id.encode(), call.exchange.lines
    call.headers = b"".join((b"x-request-id: ", request_id, b"\r\n", said, limits.headers(call.arrived_ns)))


def answer_bound(call: Call) -> int:
    """The most tokens the answer may have, as far as the call or the model's policy says."""
    if call.endpoint.name == "embeddings":
        return 0
    facts = call.facts
    asked = facts.answer_tokens
    return (asked if asked >= 0 else call.grant.answer_tokens_default) * facts.choices


def bind(call: Call, house: House) -> None:
    """Finds all that a grant's calls need, once. Raises Refusal limits_full when the arena has no room."""
    grant = call.grant
    effective = grant.effective
    try:
        limits = Limits(
            house.arena,
            [(_KINDS[limit.kind], limit.scope.encode(), limit.limit, limit.burst) for limit in effective.limits],
        )
    except ArenaFull:
        raise Refusal("limits_full", retry_after_ms=1000) from None
    tenant, model = effective.tenant, effective.model
    assert tenant is not None
    assert model is not None
    grant.routes = house.routes(model, tenant.name)
    grant.tokenizer = house.tokenizer(model, tenant.name)
    grant.answer_tokens_default = model.answer_tokens_default
    grant.price = model.price or _UNPRICED
    grant.tag_header = tenant.tag_header
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
    principal, facts, grant = call.known.principal, call.facts, call.grant
    tags = principal.tags
    if grant.tag_header is not None:
        tags += header_tag(call, grant.tag_header)
    user = principal.user or facts.user
    price = grant.price
    return Opened(
        principal.tenant,
        principal.key_id,
        cut(user, bounds.USER_BYTES_MAX) if user else "",
        tags,
        call.request_id[: bounds.REQUEST_ID_BYTES_KEPT],
        call.endpoint.name,
        facts.model or "",
        facts.stream,
        call.prompt_tokens,
        call.prompt_source,
        wall_us(),
        price.prompt,
        price.cached,
        price.completion,
        price.version,
        grant.tokenizer.reasoning,
    )


def header_tag(call: Call, name: str) -> tuple[tuple[str, str], ...]:
    """The tag that this tenant lets its callers set by a header, under the header's name."""
    wanted = name.encode()
    for header, value in call.exchange.raw_headers:
        if header.lower() == wanted:
            tag = cut(value.decode("utf-8", "replace"), bounds.TAG_BYTES_MAX)
            return ((cut(name, bounds.TAG_HEADER_BYTES_MAX), tag),)
    return ()
