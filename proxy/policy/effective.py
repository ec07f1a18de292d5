"""What one key may do: plan ∩ tenant ∩ key, for one model at one endpoint. A key may also be on a plan of its own,
which narrows this key alone.

Pure: real requests and `weir explain` both ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from proxy.bounds import BURST_MINUTES_MAX, MODEL_BYTES_MAX
from proxy.call import Principal
from proxy.policy.schema import EVERY
from proxy.policy.snapshot import KINDS, Kind, Model, Plan, Policy, Rights, Rule, Rules, Tenant


class Limit(Struct, frozen=True):
    """One limit in force. `scope` names its cell in the arena; `limit` is per minute, or calls at one time."""

    kind: Kind
    level: str  # tenant, key or model
    scope: str  # tenant/<t>, key/<key id>, key/<key id>/<model>, model/<t>/<model>
    limit: int
    burst: int  # 0 for concurrency
    source: str  # "file:line" that decides, or "the key"
    burst_source: str  # "" where the burst follows from the limit


class Effective(Struct, frozen=True):
    """The verdict. `refusal` is a code of `errors.KINDS`, or None when allowed; `reason` and `source` say what decided.

    `model` has concrete targets: for a name that the catch-all serves, its `name` is the name asked for. `limits` stand
    in the order tenant, key, model, and within each in the order requests, tokens, concurrency.
    """

    refusal: str | None
    detail: str  # for the refusal's message
    reason: str  # one sentence for the operator
    source: str
    tenant: Tenant | None = None
    plan: Plan | None = None
    model: Model | None = None
    limits: tuple[Limit, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.refusal is None


def effective(
    policy: Policy, principal: Principal, model: str, endpoint: str, *, now_us: int | None = None
) -> Effective:
    """Judges one key, model and endpoint. With `now_us` (wall clock) the key's expiry counts too."""
    verdict = _standing(policy, principal, now_us)
    tenant, plan = verdict.tenant, verdict.plan
    if verdict.refusal is not None or tenant is None or plan is None:
        return verdict

    def refused(code: str, detail: str, reason: str, source: str) -> Effective:
        return Effective(code, detail, reason, source, tenant, plan)

    found = find_model(policy, model)
    if found is None:
        return refused("model_not_found", model, f"no entry in models serves {model}", "")
    for models, who, source in _model_rights(policy, principal, tenant, plan):
        if models is not None and model not in models and EVERY not in models:
            return refused("model_not_found", model, f"{who} does not list the model {model}", source)
    for endpoints, who, source in _endpoint_rights(policy, principal, tenant, plan):
        if endpoints is not None and endpoint not in endpoints:
            return refused("endpoint_not_allowed", endpoint, f"{who} does not list the endpoint {endpoint}", source)
    if found.endpoints is not None and endpoint not in found.endpoints:
        reason = f"the model {model} is not served at the endpoint {endpoint}"
        return refused("model_not_at_endpoint", model, reason, found.endpoints_source)
    limits = _limits(policy, principal, tenant, plan, found)
    reason = f"the plan {plan.name}, the tenant {tenant.name} and the key allow it"
    return Effective(None, "", reason, tenant.plan_source, tenant, plan, found, limits)


def visible_models(policy: Policy, principal: Principal) -> tuple[str, ...]:
    """Names of the models that this key may use at one endpoint at least, sorted: the answer to GET /v1/models.

    A name that only the catch-all serves is listed where plan, tenant or key names it.
    """
    verdict = _standing(policy, principal, None)
    tenant, plan = verdict.tenant, verdict.plan
    if verdict.refusal is not None or tenant is None or plan is None:
        return ()
    rights = [models for models, _, _ in _model_rights(policy, principal, tenant, plan) if models is not None]
    names = set(policy.models) | {name for models in rights for name in models}
    endpoint_rights = [listed for listed, _, _ in _endpoint_rights(policy, principal, tenant, plan)]
    visible = []
    for name in sorted(names - {EVERY}):
        found = find_model(policy, name)
        if found is None or not all(name in models or EVERY in models for models in rights):
            continue
        shared = [set(listed) for listed in (*endpoint_rights, found.endpoints) if listed is not None]
        if not shared or set.intersection(*shared):
            visible.append(name)
    return tuple(visible)


def find_model(policy: Policy, name: str) -> Model | None:
    """The model of that name, or the catch-all under that name."""
    found = policy.models.get(name)
    if name == EVERY:
        return None
    if found is None:
        found = policy.models.get(EVERY)
        if found is None or not name or len(name) > MODEL_BYTES_MAX or not all("!" <= letter <= "~" for letter in name):
            return None
        price = policy.prices.get(name, found.price)
        return msgspec.structs.replace(found, name=name, price=price)
    return found


def _standing(policy: Policy, principal: Principal, now_us: int | None) -> Effective:
    """Whether the key's tenant may call at all."""
    if principal.expires_us is not None and now_us is not None and now_us >= principal.expires_us:
        return Effective("expired_api_key", "", "the key has expired", "")
    tenant = policy.tenants.get(principal.tenant)
    if tenant is None:
        reason = f"the key's tenant {principal.tenant} is not in the policy"
        return Effective("invalid_api_key", "", reason, "")
    plan = policy.plans[tenant.plan]
    if tenant.status == "suspended":
        reason = f"the tenant {tenant.name} is suspended"
        return Effective("tenant_suspended", "", reason, tenant.status_source, tenant, plan)
    if principal.plan is not None and principal.plan not in policy.plans:
        # Who may do nothing beyond a plan may do nothing without it.
        reason = f"the key's own plan {principal.plan} is not in the policy"
        return Effective("invalid_api_key", "", reason, "", tenant, plan)
    return Effective(None, "", "", "", tenant, plan)


_Right = tuple[tuple[str, ...] | None, str, str]


def _levels(policy: Policy, principal: Principal, tenant: Tenant, plan: Plan) -> Iterator[tuple[str, Rights]]:
    """Every written level that judges this key, the widest first."""
    yield f"the plan {plan.name}", plan.rights
    yield f"the tenant {tenant.name}", tenant.rights
    if principal.plan is not None:
        yield f"the key's own plan {principal.plan}", policy.plans[principal.plan].rights


def _model_rights(policy: Policy, principal: Principal, tenant: Tenant, plan: Plan) -> tuple[_Right, ...]:
    levels = _levels(policy, principal, tenant, plan)
    return (*((rights.models, who, rights.models_source) for who, rights in levels), (principal.models, "the key", ""))


def _endpoint_rights(policy: Policy, principal: Principal, tenant: Tenant, plan: Plan) -> tuple[_Right, ...]:
    levels = _levels(policy, principal, tenant, plan)
    return (
        *((rights.endpoints, who, rights.endpoints_source) for who, rights in levels),
        (principal.endpoints, "the key", ""),
    )


def _limits(policy: Policy, principal: Principal, tenant: Tenant, plan: Plan, model: Model) -> tuple[Limit, ...]:
    high, low = plan.rights, tenant.rights
    # Names without an entry share one cell: what a client may invent must not fill the arena.
    # A plan's limits are those of whoever is on it: of a tenant for all its keys, and of a key for itself.
    of_key = () if principal.plan is None else (policy.plans[principal.plan].rights,)
    known = {*policy.models, *high.model_limits, *low.model_limits}
    known.update(*(each.model_limits for each in of_key))
    name = model.name if model.name in known else EVERY
    own_rules = tuple(Rule(kind, limit, None, "the key", "") for kind, limit in principal.own_limits)
    key = f"key/{principal.key_id}"
    cells: list[tuple[str, str, tuple[Rules, ...]]] = [
        ("tenant", f"tenant/{tenant.name}", (high.limits, low.limits)),
        (
            "key",
            key,
            (
                *(high.key_limits, low.key_limits),
                *(rules for each in of_key for rules in (each.limits, each.key_limits)),
                own_rules,
            ),
        ),
        *(("key", f"{key}/{name}", (each.model_limits.get(name, ()),)) for each in of_key),
        (
            "model",
            f"model/{tenant.name}/{name}",
            (model.limits, high.model_limits.get(name, ()), low.model_limits.get(name, ())),
        ),
    ]
    limits = []
    for level, scope, levels in cells:
        for kind in KINDS:
            limit = narrow(kind, level, scope, (rule for rules in levels for rule in rules if rule.kind == kind))
            if limit is not None:
                limits.append(limit)
    return tuple(limits)


def narrow(kind: Kind, level: str, scope: str, rules: Iterable[Rule]) -> Limit | None:
    """The narrowest of the rules, given from the widest level to the narrowest; None when none sets a limit.

    A level that sets a limit and no burst allows a burst of one minute's worth. No burst is larger than what
    BURST_MINUTES_MAX refill, however the levels combine.
    """
    limit: tuple[int, str] | None = None
    burst: tuple[int, str] | None = None
    for rule in rules:
        if rule.limit is not None and (limit is None or rule.limit < limit[0]):
            limit = rule.limit, rule.source
        width = (rule.burst, rule.burst_source) if rule.burst is not None else (rule.limit, "")
        if width[0] is not None and (burst is None or width[0] < burst[0]):
            burst = width[0], width[1]
    if limit is None:
        return None
    if kind == "concurrency" or burst is None:
        return Limit(kind, level, scope, limit[0], 0, limit[1], "")
    return Limit(kind, level, scope, limit[0], min(burst[0], limit[0] * BURST_MINUTES_MAX), limit[1], burst[1])
