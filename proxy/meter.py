"""Step 7: write down what happened, give back what was held. A plain function: no await, so nothing cuts it short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy import failpoint
from proxy._fastpath import now_ns
from proxy.call import CLIENT_GONE_STATUS, Call, Outcome, Progress, Termination
from proxy.errors import Refusal
from proxy.record import encode, settle
from proxy.tokens.estimate import fixed_tokens

if TYPE_CHECKING:
    from proxy.house import House

_UNKNOWN = Outcome("crash", 500, Progress())


def refused(call: Call, refusal: Refusal) -> None:
    """The outcome of a call that was refused after it was opened. What `stream` already found out stands."""
    if call.outcome is None:
        termination: Termination = "upstream_error" if call.ended is None else "revoked"
        call.outcome = Outcome(termination, refusal.kind.status, Progress())


def client_gone(call: Call) -> None:
    """The outcome of a call whose client left before its answer began."""
    if call.outcome is None:
        call.outcome = Outcome("client_gone", CLIENT_GONE_STATUS, Progress())


def meter(call: Call, house: House) -> None:
    """Turns the outcome into the row's record, closes the slot with it, settles the tokens, counts and logs."""
    house.running.leave(call)
    now = now_ns()
    outcome = call.outcome or _UNKNOWN
    sent_ns = call.sent_ns
    sent = call.route.facts if call.route is not None and sent_ns else None
    queue_us = ((sent_ns or now) - call.arrived_ns) // 1000
    event = settle(call.slot.call, call.opened, sent, outcome, queue_us, (now - call.arrived_ns) // 1000)
    failpoint.reach("meter.before_append")
    call.seq = house.epoch.close(call.slot, encode(event))
    failpoint.reach("meter.after_append")
    limits = call.grant.limits
    assert limits is not None
    limits.settle_tokens(now, call.reserved_tokens, event.prompt_tokens + event.completion_tokens)
    if outcome.seen.usage_seen and call.grant.tokenizer.encoding is None:
        teach(call, outcome)
    house.metrics.record(event)
    house.lines.request(event)


def teach(call: Call, outcome: Outcome) -> None:
    """Lets the model's tokenizer learn from what its upstream counted, where that was of text and of nothing else."""
    seen, facts, tokenizer = outcome.seen, call.facts, call.grant.tokenizer
    # What was cached is counted in or out, as servers please; an image's tokens are not its text's.
    if not (facts.images or seen.cached_tokens or seen.audio_tokens):
        tokenizer.learn(facts.text_bytes, seen.prompt_tokens - fixed_tokens(facts))
    # Thoughts may be in the figure and not in the stream, or in both. A cut answer's figure is of what was cut, too.
    if outcome.termination == "complete" and not (seen.reasoning_tokens or seen.audio_tokens):
        tokenizer.learn(seen.text_bytes, seen.completion_tokens)
