"""Step 3: may this key do this with this model? Answered once for each key, endpoint and model of a policy. Pure."""

from __future__ import annotations

from proxy import bounds
from proxy.call import Call, Grant
from proxy.errors import Refusal
from proxy.policy.effective import effective
from proxy.policy.snapshot import Policy


def authorise(call: Call, policy: Policy) -> None:
    """Fills `call.grant`. Raises Refusal: a model that the key may not see does not exist for it."""
    model = call.facts.model
    if model is None:
        raise Refusal("bad_value", "it names no model", param="model")
    known = call.known
    if known.policy is not policy:
        known.grants.clear()
        known.policy = policy
    grant = known.grants.get((call.endpoint.name, model))
    call.grant = grant if grant is not None else decide(call, policy, model)


def decide(call: Call, policy: Policy, model: str) -> Grant:
    """The long way: policy, tenant and key together. What it finds is kept with the key until either changes."""
    known = call.known
    if len(model.encode()) > bounds.MODEL_BYTES_MAX:
        raise Refusal("model_not_found", ascii(model[:40] + "..."), param="model")
    rights = [effective(policy, known.principal, model, name) for name in call.endpoint.judged or (call.endpoint.name,)]
    right = next((each for each in rights if each.allowed), rights[0])
    if right.refusal is not None:
        about_model = right.refusal.startswith("model_")
        raise Refusal(
            right.refusal, ascii(right.detail) if about_model else right.detail, param="model" if about_model else None
        )
    if len(known.grants) >= bounds.GRANTS_PER_KEY_MAX:
        known.grants.clear()
    grant = Grant(right)
    known.grants[(call.endpoint.name, model)] = grant
    return grant
