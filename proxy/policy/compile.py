"""From files to the snapshot: the three passes, then the thinking that a request must not do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from proxy.policy import issuing, schema, snapshot
from proxy.policy.load import Document, Files, T, read_all
from proxy.policy.meaning import NANOS, Judge
from proxy.policy.meaning_issuers import judge_issuers
from proxy.policy.problems import PolicyErrors, Problem
from proxy.policy.snapshot import KINDS, Kind, Policy


class Examined(NamedTuple):
    """What `weir check` prints. `policy` is None when there are problems; warnings do not stop anything."""

    policy: Policy | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def compile_policy(
    config_dir: str | os.PathLike[str], env: Mapping[str, str] | None = None, *, serving: bool = False
) -> Policy:
    """The policy of a configuration directory; see `examine`. Raises PolicyErrors with every problem of every file."""
    examined = examine(config_dir, env, serving=serving)
    if examined.policy is None:
        raise PolicyErrors(examined.problems)
    return examined.policy


def examine(
    config_dir: str | os.PathLike[str], env: Mapping[str, str] | None = None, *, serving: bool = False
) -> Examined:
    """The policy with all that can be said about it; `env` stands in for the environment. Raises nothing.

    serving: this process, or one that it starts, will serve by it. A secret that cannot be read is a problem then, and
    a warning elsewhere: a review need not have the secrets.
    """
    environment = os.environ if env is None else env
    problems: list[Problem] = []
    warnings: list[Problem] = []
    files = read_all(config_dir, environment, problems)
    judge = Judge(files, environment, problems, warnings, serving=serving)
    judge.process()
    judge.policy()
    judge_issuers(files, problems)
    policy = None if problems else _build(files)
    return Examined(policy, tuple(sorted(set(problems))), tuple(sorted(set(warnings))))


def _build(files: Files) -> Policy:
    weir, plans, prices = files.weir, files.plans, files.prices
    assert weir.value is not None
    assert plans.value is not None
    assert prices.value is not None
    priced = {name: _price(prices, name, price) for name, price in prices.value.models.items()}
    every = weir.value.models.get(schema.EVERY)
    policy = Policy(
        format=snapshot.SNAPSHOT_FORMAT,
        version="",
        upstreams={name: _upstream(files, name, each) for name, each in weir.value.upstreams.items()},
        models={name: _model(files, name, each, priced.get(name)) for name, each in weir.value.models.items()},
        plans={
            name: snapshot.Plan(name, plans.source("plans", name), _rights(plans, each, "plans", name))
            for name, each in plans.value.plans.items()
        },
        tenants={each.value.name: _tenant(each, each.value) for each in files.tenants if each.value is not None},
        prices={name: price for name, price in priced.items() if every is not None and name not in weir.value.models},
        issuers={name: _issuer(files, name, each) for name, each in weir.value.issuers.items()},
        identity=snapshot.Identity(*msgspec.structs.astuple(weir.value.identity)),
    )
    return msgspec.structs.replace(policy, version=snapshot.digest(policy))


def _upstream(files: Files, name: str, upstream: schema.Upstream) -> snapshot.Upstream:
    times = upstream.timeouts
    return snapshot.Upstream(
        name=name,
        source=files.weir.source("upstreams", name),
        url=upstream.url.rstrip("/"),
        key=upstream.key,
        ca_bundle=None if upstream.ca_bundle is None else str(files.base / upstream.ca_bundle),
        ask_usage=upstream.ask_usage,
        connect_seconds=min(times.connect_seconds, times.total_seconds),
        first_byte_seconds=min(times.first_byte_seconds, times.total_seconds),
        idle_seconds=min(times.idle_seconds, times.total_seconds),
        total_seconds=times.total_seconds,
        max_connections=upstream.max_connections,
        max_waiting=upstream.max_waiting,
        tenant_header=None if upstream.tenant_header is None else upstream.tenant_header.lower(),
    )


def _issuer(files: Files, name: str, issuer: issuing.Issuer) -> snapshot.Issuer:
    def models(access: issuing.Access) -> tuple[str, ...] | None:
        return None if access.models is None or schema.EVERY in access.models else tuple(access.models)

    return snapshot.Issuer(
        name=name,
        source=files.weir.source("issuers", name),
        issuer=issuer.issuer,
        tenants=tuple(issuer.tenants),
        audiences=tuple(issuer.audiences),
        algorithms=tuple(issuer.algorithms or issuing.ALGORITHMS),
        types=tuple(issuer.types or issuing.TYPES),
        keys=issuer.keys,
        ca_bundle=None if issuer.ca_bundle is None else str(files.base / issuer.ca_bundle),
        http_loopback=issuer.http_loopback,
        skew_seconds=issuer.skew_seconds,
        refresh_seconds=issuer.refresh_seconds,
        stale_seconds=issuer.stale_seconds,
        user_claim=issuer.claims.user,
        tenant_claim=issuer.claims.tenant,
        groups_claim=issuer.claims.groups,
        roles_claim=issuer.claims.roles,
        tag_claims=tuple(issuer.claims.tags or ()),
        email_domains=tuple(issuer.email_domains or ()),
        endpoints=None if issuer.endpoints is None else tuple(issuer.endpoints),
        groups={group: models(access) for group, access in issuer.groups.items()},
        roles={role: models(access) for role, access in issuer.roles.items()},
    )


def _model(files: Files, name: str, model: schema.Model, price: snapshot.Price | None) -> snapshot.Model:
    weir = files.weir
    at = ("models", name)
    if model.upstream is not None:
        targets = [(schema.Target(model.upstream, model.model), weir.source(*at, "upstream"))]
    else:
        targets = [(each, weir.source(*at, "targets", index)) for index, each in enumerate(model.targets or [])]
    own = None if name == schema.EVERY else name
    return snapshot.Model(
        name=name,
        source=weir.source(*at),
        targets=tuple(
            snapshot.Target(
                each.upstream, each.model if each.model != own else None, each.weight, each.priority, source
            )
            for each, source in targets
        ),
        endpoints=None if model.endpoints is None else tuple(model.endpoints),
        endpoints_source=weir.source(*at, "endpoints"),
        answer_tokens_default=model.answer_tokens_default,
        price=price,
        limits=_rules(weir, model.limits, *at, "limits"),
        tokenizer=_tokenizer(files, model.tokenizer),
        tokenizer_source=weir.source(*at, "tokenizer"),
        family=model.family,
    )


def _tokenizer(files: Files, name: str) -> str:
    kind, separator, path = name.partition(":")
    return name if not separator else f"{kind}:{files.base / path}"


def _price(prices: Document[schema.PricesFile], name: str, price: schema.Price) -> snapshot.Price:
    assert prices.value is not None
    cached = price.prompt if price.cached is None else price.cached
    return snapshot.Price(
        prompt=int(price.prompt * NANOS),
        cached=int(cached * NANOS),
        completion=int(price.completion * NANOS),
        version=prices.value.version,
        source=prices.source("models", name),
    )


def _tenant(document: Document[schema.TenantFile], tenant: schema.TenantFile) -> snapshot.Tenant:
    return snapshot.Tenant(
        name=tenant.name,
        source=document.source(),
        plan=tenant.plan,
        plan_source=document.source("plan"),
        status=tenant.status,
        status_source=document.source("status"),
        tag_header=None if tenant.tag_header is None else tenant.tag_header.lower(),
        rights=_rights(document, tenant),
    )


def _rights(document: Document[T], rights: schema.Rights, *at: str) -> snapshot.Rights:
    return snapshot.Rights(
        endpoints=None if rights.endpoints is None else tuple(rights.endpoints),
        endpoints_source=document.source(*at, "endpoints"),
        models=None if rights.models is None else tuple(rights.models),
        models_source=document.source(*at, "models"),
        limits=_rules(document, rights.limits, *at, "limits"),
        key_limits=_rules(document, rights.key_limits, *at, "key_limits"),
        model_limits={
            name: _rules(document, limits, *at, "model_limits", name) for name, limits in rights.model_limits.items()
        },
        on_revoke=rights.on_revoke,
    )


def _rules(document: Document[T], limits: schema.Limits, *at: str) -> snapshot.Rules:
    bursts: dict[Kind, str] = {"requests_per_minute": "requests_burst", "tokens_per_minute": "tokens_burst"}
    rules = []
    for kind in KINDS:
        limit: int | None = getattr(limits, kind)
        burst: int | None = getattr(limits, bursts[kind]) if kind in bursts else None
        if limit is None and burst is None:
            continue
        burst_source = "" if burst is None else document.source(*at, bursts[kind])
        source = burst_source if limit is None else document.source(*at, kind)
        rules.append(snapshot.Rule(kind, limit, burst, source, burst_source))
    return tuple(rules)
