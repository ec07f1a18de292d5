"""Effective right = plan ∩ tenant ∩ key: a lower level narrows and never widens, and the reason names its line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bounds import BURST_MINUTES_MAX
from proxy.call import Principal
from proxy.errors import KINDS as REFUSALS
from proxy.policy.compile import compile_policy, examine
from proxy.policy.effective import Effective, effective, visible_models
from proxy.policy.snapshot import (
    KINDS,
    Model,
    Plan,
    Policy,
    Price,
    Rights,
    Rule,
    Rules,
    Target,
    Tenant,
    Upstream,
    digest,
)
from tests.policy.gallery import BASE, EXAMPLE, environment, lay_out

ENDPOINTS = ("chat.completions", "completions", "embeddings")
MODELS = ("small", "large", "*")
ASKED = ("small", "large", "other", "*", "")

NOTHING = Rights(None, "", None, "", (), (), {})


def rule(kind: str, limit: int | None, burst: int | None) -> Rule:
    return Rule(kind, limit, None if kind == "concurrency" else burst, f"{kind}:{limit}", f"burst:{burst}")  # type: ignore[arg-type]


numbers = st.one_of(st.none(), st.integers(1, 5))
rules: st.SearchStrategy[Rules] = st.dictionaries(st.sampled_from(KINDS), st.tuples(numbers, numbers)).map(
    lambda chosen: tuple(rule(kind, *chosen[kind]) for kind in KINDS if kind in chosen)
)


def some(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...] | None]:
    return st.one_of(st.none(), st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple))


rights = st.builds(
    Rights,
    some(ENDPOINTS),
    st.just("e:1"),
    some((*MODELS, "other")),
    st.just("m:1"),
    rules,
    rules,
    st.dictionaries(st.sampled_from((*MODELS, "other")), rules),
)
principals = st.builds(
    Principal, st.just("t"), st.just("k"), endpoints=some(ENDPOINTS), models=some((*MODELS, "other"))
)


def model(name: str, endpoints: tuple[str, ...] | None, limits: Rules) -> Model:
    return Model(name, "w:1", (Target("u", None, 1, 0, "w:2"),), endpoints, "w:3", 1024, None, limits)


@st.composite
def policies(draw: st.DrawFn, tenant_rights: Rights | None = None) -> Policy:
    names = draw(st.lists(st.sampled_from(MODELS), min_size=1, unique=True))
    return make(
        {name: model(name, draw(some(ENDPOINTS)), draw(rules)) for name in names},
        draw(rights),
        draw(rights) if tenant_rights is None else tenant_rights,
    )


def make(models: dict[str, Model], plan: Rights, tenant: Rights) -> Policy:
    upstream = Upstream("u", "w:9", "http://127.0.0.1/v1", None, None, True, 1.0, 1.0, 1.0, 1.0, 1, 1)
    policy = Policy(
        1,
        "",
        {"u": upstream},
        models,
        {"p": Plan("p", "p:1", plan)},
        {"t": Tenant("t", "t:1", "p", "t:2", "active", "t:3", None, tenant)},
        {"other": Price(1, 1, 1, "v", "r:1")},
    )
    return msgspec.structs.replace(policy, version=digest(policy))


def judged(policy: Policy, principal: Principal) -> dict[tuple[str, str], Effective]:
    return {(name, end): effective(policy, principal, name, end) for name in ASKED for end in ENDPOINTS}


def widths(verdict: Effective) -> dict[tuple[str, str, str], int]:
    """What is admitted, by scope and kind; a rate's burst is a width of its own."""
    found = {}
    for limit in verdict.limits:
        found[limit.scope, limit.kind, "limit"] = limit.limit
        if limit.kind != "concurrency":
            found[limit.scope, limit.kind, "burst"] = limit.burst
    return found


@settings(max_examples=300, deadline=None, print_blob=True)
@given(policies(), rights, principals)
def test_lower_levels_never_widen(policy: Policy, tenant: Rights, principal: Principal) -> None:
    """Should allow nothing, and raise no limit, that the plan alone, or plan and tenant alone, would not."""
    wide = make(policy.models, policy.plans["p"].rights, NOTHING)
    narrow = make(policy.models, policy.plans["p"].rights, tenant)
    anyone = Principal("t", "k")
    for above, below in (
        (judged(wide, anyone), judged(narrow, anyone)),
        (judged(narrow, anyone), judged(narrow, principal)),
    ):
        for asked, verdict in below.items():
            if not verdict.allowed:
                continue
            assert above[asked].allowed
            low = widths(verdict)
            for scope, width in widths(above[asked]).items():
                # A tenant that names a model gives it a cell of its own: then it is out of the shared one.
                if scope in low:
                    assert low[scope] <= width
                else:
                    assert scope[0] == "model/t/*"
                    assert asked[0] in tenant.model_limits


@settings(max_examples=300, deadline=None, print_blob=True)
@given(policies(), principals)
def test_limits_are_the_least_that_is_written(policy: Policy, principal: Principal) -> None:
    """Should be, at each level, the minimum over the rules of that level, and name the line of that minimum."""
    high, low = policy.plans["p"].rights, policy.tenants["t"].rights
    for verdict in judged(policy, principal).values():
        for limit in verdict.limits:
            name = limit.scope.removeprefix("model/t/")
            written = {
                "tenant": (high.limits, low.limits),
                "key": (high.key_limits, low.key_limits),
                "model": (verdict.model.limits, high.model_limits.get(name, ()), low.model_limits.get(name, ())),  # type: ignore[union-attr]
            }[limit.level]
            all_rules = [each for level in written for each in level if each.kind == limit.kind]
            least = min(each.limit for each in all_rules if each.limit is not None)
            assert limit.limit == least
            assert limit.source == f"{limit.kind}:{least}"
            if limit.kind != "concurrency":
                widest = [each.burst if each.burst is not None else each.limit for each in all_rules]
                assert limit.burst == min(width for width in widest if width is not None)
        assert verdict.allowed == (verdict.model is not None)
        assert verdict.refusal is None or verdict.refusal in REFUSALS


@settings(max_examples=200, deadline=None, print_blob=True)
@given(policies(), principals)
def test_visible_models_are_those_that_can_be_used(policy: Policy, principal: Principal) -> None:
    """Should list a declared model exactly when it is allowed at one endpoint at least."""
    visible = visible_models(policy, principal)
    verdicts = judged(policy, principal)
    for name in ("small", "large"):
        usable = any(verdicts[name, end].allowed for end in ENDPOINTS)
        assert (name in visible) == (usable and (name in policy.models or named(policy, principal, name)))
    assert "*" not in visible
    assert list(visible) == sorted(visible)
    assert all(any(verdicts[name, end].allowed for end in ENDPOINTS) for name in visible)


def named(policy: Policy, principal: Principal, name: str) -> bool:
    levels = (policy.plans["p"].rights.models, policy.tenants["t"].rights.models, principal.models)
    return any(models is not None and name in models for models in levels)


@settings(max_examples=60, deadline=None, print_blob=True)
@given(
    st.dictionaries(st.sampled_from(["requests_per_minute", "tokens_per_minute", "concurrency"]), st.integers(1, 9)),
    st.dictionaries(st.sampled_from(["requests_per_minute", "tokens_per_minute", "concurrency"]), st.integers(1, 9)),
)
def test_a_tenant_file_that_widens_is_refused(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, int], tenant: dict[str, int]
) -> None:
    """Should load exactly when no limit of the tenant is above the plan's, and name both lines when one is."""
    config = lay_out(BASE, tmp_path_factory.mktemp("narrow"))
    plan_lines = "".join(f"      {name}: {value}\n" for name, value in plan.items())
    tenant_lines = "".join(f"  {name}: {value}\n" for name, value in tenant.items())
    (config / "plans.yaml").write_text("plans:\n  team:\n" + (f"    limits:\n{plan_lines}" if plan else "    {}\n"))
    (config / "tenants/acme.yaml").write_text(
        "name: acme\nplan: team\n" + (f"limits:\n{tenant_lines}" if tenant else "")
    )
    wider = [name for name, value in tenant.items() if value > plan.get(name, 10)]
    problems = examine(config, {}).problems
    assert sorted(problem.path for problem in problems) == sorted(f"limits.{name}" for name in wider)
    for problem in problems:
        name = problem.path.removeprefix("limits.")
        assert problem.line == 4 + list(tenant).index(name)
        assert f"{config}/plans.yaml:{4 + list(plan).index(name)};" in problem.sentence


# --- the example, by hand ---


@pytest.fixture(scope="module")
def example() -> Policy:
    return compile_policy(EXAMPLE, {})


def test_every_limit_names_its_level_scope_and_line(example: Policy) -> None:
    """Should give the limits of the example in the order tenant, key, model, each with the line that decides."""
    verdict = effective(example, Principal("acme", "key_1"), "gpt-4o", "chat.completions")
    found = [(each.scope, each.kind, each.limit, each.burst, Path(each.source).name) for each in verdict.limits]
    assert found == [
        ("tenant/acme", "requests_per_minute", 600, 100, "acme.yaml:12"),
        ("tenant/acme", "tokens_per_minute", 200_000, 200_000, "acme.yaml:14"),
        ("tenant/acme", "concurrency", 40, 0, "acme.yaml:15"),
        ("key/key_1", "requests_per_minute", 120, 120, "acme.yaml:18"),
        ("key/key_1", "concurrency", 200, 0, "plans.yaml:22"),
        ("model/acme/gpt-4o", "tokens_per_minute", 50_000, 50_000, "acme.yaml:22"),
        ("model/acme/gpt-4o", "concurrency", 200, 0, "weir.yaml:47"),
    ]
    assert verdict.allowed
    assert [limit.level for limit in verdict.limits] == ["tenant"] * 3 + ["key"] * 2 + ["model"] * 2


def test_refusals_name_what_decides(example: Policy) -> None:
    """Should refuse by the first level that does not list it, with its line, and with a code the errors know."""
    acme = Principal("acme", "k")
    cases = [
        (acme, "demo", "chat.completions", "model_not_found", "acme.yaml:8"),
        (acme, "gpt-4o", "completions", "endpoint_not_allowed", "acme.yaml:9"),
        (acme, "gpt-4o", "embeddings", "model_not_at_endpoint", "weir.yaml:45"),
        (msgspec.structs.replace(acme, models=("gpt-4o",)), "gpt-4o-mini", "chat.completions", "model_not_found", ""),
        (
            msgspec.structs.replace(acme, endpoints=("embeddings",)),
            "gpt-4o",
            "chat.completions",
            "endpoint_not_allowed",
            "",
        ),
        (Principal("nobody", "k"), "gpt-4o", "chat.completions", "invalid_api_key", ""),
        (Principal("demo", "k"), "two words", "chat.completions", "model_not_found", ""),
        (Principal("demo", "k"), "x" * 129, "chat.completions", "model_not_found", ""),
        (Principal("demo", "k"), "*", "chat.completions", "model_not_found", ""),
    ]
    for principal, name, endpoint, code, source in cases:
        verdict = effective(example, principal, name, endpoint)
        assert (verdict.refusal, Path(verdict.source).name) == (code, source), verdict.reason
        assert verdict.refusal in REFUSALS
        assert verdict.limits == ()


def test_expiry_counts_only_against_a_given_time(example: Policy) -> None:
    """Should refuse from the microsecond of expiry on, and leave time out of a verdict that is kept."""
    key = Principal("acme", "k", expires_us=1000)
    assert effective(example, key, "gpt-4o", "chat.completions").allowed
    assert effective(example, key, "gpt-4o", "chat.completions", now_us=999).allowed
    assert effective(example, key, "gpt-4o", "chat.completions", now_us=1000).refusal == "expired_api_key"


def test_the_catch_all_takes_other_names(example: Policy) -> None:
    """Should pass the name on, without a price of its own, in one shared cell: what clients invent fills no arena."""
    one = effective(example, Principal("demo", "k"), "llama-3", "chat.completions")
    two = effective(example, Principal("demo", "k"), "qwen", "chat.completions")
    assert one.model is not None
    assert (one.model.name, one.model.price, one.model.targets[0].model) == ("llama-3", None, None)
    assert {limit.scope for limit in one.limits} == {limit.scope for limit in two.limits}
    assert "model/demo/*" in {limit.scope for limit in one.limits}


def test_a_suspended_tenant_is_refused_with_its_line(tmp_path: Path) -> None:
    """Should refuse everything of a suspended tenant, also the list of models."""
    config = lay_out(BASE, tmp_path)
    (config / "tenants/acme.yaml").write_text("name: acme\nplan: team\nstatus: suspended\n")
    policy = compile_policy(config, {})
    verdict = effective(policy, Principal("acme", "k"), "small", "chat.completions")
    assert (verdict.refusal, Path(verdict.source).name) == ("tenant_suspended", "acme.yaml:3")
    assert visible_models(policy, Principal("acme", "k")) == ()


def test_compiled_values_are_those_of_the_file(tmp_path: Path) -> None:
    """Should carry every key of a full configuration into the snapshot."""
    case = BASE.parent / "every-key"
    config = lay_out(case, tmp_path)
    policy = compile_policy(config, environment(case))
    main = policy.upstreams["main"]
    assert (main.url, main.key, main.ask_usage) == ("https://api.example.com/v1", "file:/run/secrets/upstream", False)
    assert (main.connect_seconds, main.first_byte_seconds, main.idle_seconds, main.total_seconds) == (1, 30, 10.5, 600)
    assert (main.max_connections, main.max_waiting) == (64, 0)
    small, large = policy.models["small"], policy.models["large"]
    assert [(each.upstream, each.model, each.weight) for each in small.targets] == [("main", "small-2025-06-01", 1)]
    assert (small.endpoints, small.answer_tokens_default) == (("chat.completions", "completions"), 512)
    assert [(each.upstream, each.model, each.weight, each.priority) for each in large.targets] == [
        ("main", None, 3, 0),
        ("main", "large-2", 0, 0),
        ("local.2", None, 1, 1),
    ]
    tenant = policy.tenants["acme"]
    assert (tenant.status, tenant.tag_header, tenant.plan) == ("suspended", "x-team", "team")


def test_a_burst_is_never_more_than_a_week_refills() -> None:
    """A wide burst over a slow rate of another level stays within what the arena's cells can express."""
    wide = Rights(None, "", None, "", (rule("requests_per_minute", 1000, 1000),), (), {})
    slow = Rights(None, "", None, "", (rule("requests_per_minute", 1, None),), (), {})
    fast = Rights(None, "", None, "", (rule("requests_per_minute", 10**9, 10**9),), (), {})
    plain = {"small": model("small", None, ())}
    who = Principal("t", "k")
    for plan, tenant, expected in ((wide, slow, 1), (fast, NOTHING, 10**9)):
        limits = effective(make(plain, plan, tenant), who, "small", "embeddings").limits
        assert [limit.burst for limit in limits] == [expected]
    only_burst = Rights(None, "", None, "", (Rule("requests_per_minute", 1, 10**9, "a:1", "a:2"),), (), {})
    limits = effective(make(plain, only_burst, NOTHING), who, "small", "embeddings").limits
    assert limits[0].burst == BURST_MINUTES_MAX
