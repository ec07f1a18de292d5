"""Pass 3, meaning: what is well formed and still cannot be: unknown names, contradictions, no price, widened rights.

Each check looks only; it adds problems, or warnings where the policy works and is likely not what was meant. A name
whose entry is wrong in shape counts as known here, so that one mistake is one message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from proxy.bounds import PRICE_DOLLARS_MAX, RECORD_BYTES_MAX
from proxy.policy import schema, secrets
from proxy.policy.load import Document, Files, T
from proxy.policy.meaning_certificates import certificate_complaint, judge_listener
from proxy.policy.meaning_tokenizers import judge_tokenizers
from proxy.policy.problems import Path as Where
from proxy.policy.problems import Problem, guess, instead
from proxy.policy.schema import EVERY

NANOS = 10**9  # nano-dollars in a dollar

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SECRET_HEADERS = ("authorization", "cookie", "host", "proxy-authorization", "x-api-key")
_UPSTREAM_HEADERS = frozenset(
    {
        *_SECRET_HEADERS,
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect"),
        *("keep-alive", "openai-beta", "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade"),
        *("user-agent", "x-request-id"),
    }
)
_CREDENTIAL = re.compile(rb"[!-~]+")  # what can follow `Bearer ` in a header
_BURST_OF = {"requests_burst": "requests_per_minute", "tokens_burst": "tokens_per_minute"}


class Ceiling(NamedTuple):
    """Limits that a lower level must not widen, and where they are written."""

    document: Document[schema.PlansFile] | Document[schema.TenantFile] | Document[schema.WeirFile]
    path: Where
    limits: schema.Limits


class Judge:
    """Collects what it finds in `problems` and `warnings`."""

    def __init__(
        self,
        files: Files,
        env: Mapping[str, str],
        problems: list[Problem],
        warnings: list[Problem],
        *,
        serving: bool = False,
    ) -> None:
        """serving: the policy is about to be used here, so a secret that cannot be read is a problem."""
        self.files = files
        self._env = env
        self._serving = serving
        self._problems = problems
        self._warnings = warnings

    def policy(self) -> None:
        """Everything that a policy is made of."""
        self.upstreams()
        self.models()
        self.prices()
        self.plans()
        self.tenants()

    def _wrong(self, document: Document[T], sentence: str, *path: str | int) -> None:
        self._problems.append(document.problem(path, sentence))

    def _doubtful(self, document: Document[T], sentence: str, *path: str | int) -> None:
        self._warnings.append(document.problem(path, sentence))

    # --- weir.yaml: the process ---

    def process(self) -> None:
        """Listeners, files, database and journal."""
        weir = self.files.weir
        if weir.value is None:
            return
        value = weir.value
        if value.listen.port and (value.listen.host, value.listen.port) == (value.metrics.host, value.metrics.port):
            self._wrong(weir, f"the same address as listen at {weir.source('listen')}; take another port", "metrics")
        control = value.control.host, value.control.port
        for other, place in ((value.listen, "listen"), (value.metrics, "metrics")):
            if value.control.port and control == (other.host, other.port):
                self._wrong(weir, f"the same address as {place} at {weir.source(place)}; take another port", "control")
        for tls, place in ((value.listen.tls, "listen"), (value.control.tls, "control")):
            judge_listener(tls, self.files.base, partial(self._wrong, weir), place, "tls")
        for index, text in enumerate(value.listen.trusted_proxies):
            try:
                everybody = ip_network(text).prefixlen == 0
            except ValueError as error:
                self._wrong(weir, f"{text}: {error}", "listen", "trusted_proxies", index)
                continue
            if everybody:
                sentence = f"{text} is everybody: each client could say where it is; name the proxies' own addresses"
                self._wrong(weir, sentence, "listen", "trusted_proxies", index)
        journal = value.journal
        least = value.workers * (journal.segment_bytes + journal.slots * RECORD_BYTES_MAX)
        if journal.max_bytes < least:
            sentence = f"too small for workers ({value.workers}), slots ({journal.slots}) and segment_bytes"
            self._wrong(weir, f"{sentence}; write at least {least}", "journal", "max_bytes")
        if value.database is not None and value.database.startswith("sqlite:"):
            name = value.database.removeprefix("sqlite://")
            if not name.startswith("/") or name.strip("/") in ("", ":memory:"):
                self._wrong(weir, "names no file that every process could open; write sqlite:///path", "database")
        if value.pepper is not None:
            self._readable(weir, value.pepper, "pepper")

    def _readable(self, document: Document[schema.WeirFile], reference: str, *path: str) -> bytes | None:
        """The secret; None, and a sentence, when it cannot be read."""
        try:
            return secrets.resolve(reference, self._env)
        except secrets.SecretMissing as error:
            self._unreadable(document, str(error), *path)
            return None

    def _unreadable(self, document: Document[schema.WeirFile], sentence: str, *path: str) -> None:
        """Where nothing is served, as in a review, a secret may well be absent."""
        if self._serving:
            self._wrong(document, sentence, *path)
        else:
            self._doubtful(document, f"{sentence}; the processes that use it will refuse to start", *path)

    # --- weir.yaml: upstreams and models ---

    def upstreams(self) -> None:
        weir = self.files.weir
        if weir.value is None:
            return
        if not weir.named("upstreams"):
            self._wrong(weir, "names no upstream; there is nowhere to send a call", "upstreams")
        for name, upstream in weir.value.upstreams.items():
            at = ("upstreams", name)
            self._url(weir, upstream, name)
            times = upstream.timeouts
            for shorter in weir.named(*at, "timeouts"):
                bound: float = getattr(times, shorter, 0.0)
                if bound > times.total_seconds:
                    sentence = f"{bound:g} is longer than total_seconds ({times.total_seconds:g}); it would never count"
                    self._wrong(weir, sentence, *at, "timeouts", shorter)
            if upstream.ca_bundle is not None:
                if upstream.url.startswith("http:"):
                    self._wrong(weir, "has no effect on an http URL; write https, or remove it", *at, "ca_bundle")
                elif (complaint := certificate_complaint(self.files.base / upstream.ca_bundle)) is not None:
                    self._wrong(weir, complaint, *at, "ca_bundle")
            if upstream.key is not None:
                key = self._readable(weir, upstream.key, *at, "key")
                if key and not _CREDENTIAL.fullmatch(key):
                    self._unreadable(weir, f"{upstream.key} holds a space or a character beyond ASCII", *at, "key")
            header = upstream.tenant_header
            if header is not None and header.lower() in _UPSTREAM_HEADERS:
                self._wrong(weir, f"{header} has a meaning of its own; name another header", *at, "tenant_header")

    def _url(self, weir: Document[schema.WeirFile], upstream: schema.Upstream, name: str) -> None:
        at = ("upstreams", name, "url")
        try:
            url = urlsplit(upstream.url)
            port = url.port
        except ValueError:
            self._wrong(weir, "not a URL; write http://host:port/v1 or https://host/v1", *at)
            return
        if url.scheme not in ("http", "https") or not url.hostname or not _printable(upstream.url):
            self._wrong(weir, "not a URL; write http://host:port/v1 or https://host/v1", *at)
            return
        if url.username is not None or url.password is not None:
            self._wrong(weir, "a credential cannot stand in a URL; write it as key", *at)
        if "?" in upstream.url or "#" in upstream.url:
            self._wrong(weir, "a base URL has no query and no fragment; remove what follows ? or #", *at)
        for endpoint in ("/chat/completions", "/completions", "/embeddings"):
            if url.path.rstrip("/").endswith(endpoint):
                self._wrong(weir, f"a base URL ends before the endpoint; remove {endpoint}", *at)
                break
        if (
            weir.value is not None
            and port is not None
            and url.hostname == weir.value.listen.host
            and (port == weir.value.listen.port)
        ):
            self._wrong(
                weir, f"is this gateway's own address, at {weir.source('listen', 'port')}; calls would circle", *at
            )
        self._url_doubts(weir, upstream, url, at)

    def _url_doubts(
        self, weir: Document[schema.WeirFile], upstream: schema.Upstream, url: SplitResult, at: tuple[str, ...]
    ) -> None:
        if url.path in ("", "/"):
            self._doubtful(weir, "has no path; OpenAI-compatible servers usually answer below /v1", *at)
        if upstream.key is not None and url.scheme == "http" and url.hostname not in _LOOPBACK:
            self._doubtful(weir, "http: the key is sent unencrypted to another host; write https", *at)

    def models(self) -> None:
        weir = self.files.weir
        if weir.value is None:
            return
        if not weir.named("models"):
            self._wrong(weir, 'names no model; add one, or "*" for every name', "models")
        for name, model in weir.value.models.items():
            at = ("models", name)
            if model.upstream is None and model.targets is None:
                self._wrong(weir, "needs upstream (one place) or targets (several)", *at)
            if model.upstream is not None and model.targets is not None:
                where = weir.source(*at, "targets")
                self._wrong(weir, f"contradicts targets at {where}; keep one of the two", *at, "upstream")
            if model.model is not None and model.targets is not None:
                self._wrong(weir, "has no effect beside targets; write model in each target", *at, "model")
            if model.upstream is not None:
                self._known_upstream(weir, model.upstream, *at, "upstream")
            if model.model is not None and name == EVERY:
                self._wrong(
                    weir, '"*" passes each name on unchanged; give this model an entry of its own', *at, "model"
                )
            self._targets(weir, name, model.targets or [])
            self._limits(weir, (*at, "limits"), model.limits, [])
            self._priced(weir, name, model)
        judge_tokenizers(
            self.files,
            lambda sentence, *path: self._wrong(weir, sentence, *path),
            lambda sentence, *path: self._doubtful(weir, sentence, *path),
        )

    def _targets(self, weir: Document[schema.WeirFile], name: str, targets: list[schema.Target]) -> None:
        weights: dict[int, int] = {}
        for index, target in enumerate(targets):
            at = ("models", name, "targets", index)
            self._known_upstream(weir, target.upstream, *at, "upstream")
            weights[target.priority] = weights.get(target.priority, 0) + target.weight
            if target.model is not None and name == EVERY:
                sentence = '"*" passes each name on unchanged; give this model an entry of its own'
                self._wrong(weir, sentence, *at, "model")
        for priority, weight in sorted(weights.items()):
            if weight == 0:
                sentence = f"every target of priority {priority} has weight 0; one must be at least 1"
                self._wrong(weir, sentence, "models", name, "targets")

    def _known_upstream(self, weir: Document[schema.WeirFile], name: str, *path: str | int) -> None:
        known = weir.named("upstreams")
        if name not in known:
            self._wrong(weir, f"unknown upstream {name}; {instead(name, known, 'no upstream is known')}", *path)

    def _priced(self, weir: Document[schema.WeirFile], name: str, model: schema.Model) -> None:
        prices = self.files.prices
        if prices.value is None and ("models",) not in prices.names:
            return
        priced = name in prices.named("models")
        at = ("models", name)
        if priced and model.unpriced:
            where = prices.source("models", name)
            self._wrong(weir, f"contradicts the price at {where}; remove one of the two", *at, "unpriced")
        if not priced and not model.unpriced:
            likely = guess(name, prices.named("models"), cutoff=0.85)
            hint = f"there is one for {likely}" if likely is not None else f"add one to {prices.file}"
            self._wrong(weir, f"no price; {hint}, or write unpriced: true", *at)

    # --- prices.yaml ---

    def prices(self) -> None:
        prices = self.files.prices
        if prices.value is None:
            return
        for name, price in prices.value.models.items():
            for part in ("prompt", "cached", "completion"):
                dollars: Decimal | None = getattr(price, part)
                if dollars is None:
                    continue
                at = ("models", name, part)
                if dollars < 0 or dollars > PRICE_DOLLARS_MAX:
                    self._wrong(prices, f"must be from 0 to {PRICE_DOLLARS_MAX} dollars per million tokens", *at)
                elif dollars * NANOS % 1:
                    self._wrong(prices, "has more than 9 decimals; a nano-dollar per million tokens is the least", *at)
            if price.cached is not None and price.cached > price.prompt:
                where = prices.source("models", name, "prompt")
                self._wrong(
                    prices,
                    f"dearer than prompt at {where}; cached tokens cost at most that",
                    *("models", name, "cached"),
                )

    # --- plans.yaml and tenants/*.yaml ---

    def plans(self) -> None:
        plans = self.files.plans
        if plans.value is None:
            return
        if not plans.named("plans"):
            self._wrong(plans, "names no plan; every tenant needs one", "plans")
        for name, plan in plans.value.plans.items():
            at = ("plans", name)
            self._known_models(plans, plan, at)
            self._limits(plans, (*at, "limits"), plan.limits, [])
            above = [Ceiling(plans, (*at, "limits"), plan.limits)]
            self._limits(plans, (*at, "key_limits"), plan.key_limits, above)
            for model, limits in plan.model_limits.items():
                self._limits(plans, (*at, "model_limits", model), limits, [*above, *self._model_ceiling(model)])
                self._may_use(plans, plan, model, at)

    def tenants(self) -> None:
        plans = self.files.plans
        own = {
            each.value.name: each for each in self.files.tenants if each.value and each.value.name == _stem(each.file)
        }
        for tenant in self.files.tenants:
            value = tenant.value
            if value is None:
                continue
            stem = _stem(tenant.file)
            if value.name != stem and value.name in own:
                where = own[value.name].source("name")
                self._wrong(
                    tenant, f"the tenant {value.name} stands twice; it is {where}, one file is one tenant", "name"
                )
            elif value.name != stem:
                sentence = (
                    f"{value.name} is not the name of the file; write {stem}, or rename the file {value.name}.yaml"
                )
                self._wrong(tenant, sentence, "name")
            if value.tag_header is not None and value.tag_header.lower() in _SECRET_HEADERS:
                self._wrong(tenant, f"{value.tag_header} is never kept; name another header", "tag_header")
            known = plans.named("plans")
            if ("plans",) in plans.names and value.plan not in known:
                sentence = f"unknown plan {value.plan}; {instead(value.plan, known, 'no plan is known')}"
                self._wrong(tenant, sentence, "plan")
            plan = plans.value.plans.get(value.plan) if plans.value is not None else None
            self._known_models(tenant, value, ())
            self._narrowed(tenant, value, plan)
        if not self.files.tenants and self.files.weir.value is not None:
            self._doubtful(self.files.weir, "there is no tenant; add a file to tenants/, or nobody can call")

    def _narrowed(
        self, tenant: Document[schema.TenantFile], value: schema.TenantFile, plan: schema.Plan | None
    ) -> None:
        """A tenant's rights and limits stay within its plan's; its keys' and models' within its own."""
        plans = self.files.plans
        at = ("plans", value.plan)
        if plan is not None:
            for name in ("models", "endpoints"):
                below, above = getattr(value, name) or [], getattr(plan, name)
                if above is None or EVERY in above:
                    continue
                for index, each in enumerate(below):
                    if each not in above and each != EVERY and (name == "endpoints" or self._exists(each)):
                        where = plans.source(*at, name)
                        sentence = f"{each} is not in the plan {value.plan} at {where}; a tenant can only narrow"
                        self._wrong(tenant, sentence, name, index)

        def ceilings(*names: str) -> list[Ceiling]:
            return [Ceiling(plans, (*at, each), getattr(plan, each)) for each in names] if plan is not None else []

        own = Ceiling(tenant, ("limits",), value.limits)
        self._limits(tenant, ("limits",), value.limits, ceilings("limits"))
        self._limits(tenant, ("key_limits",), value.key_limits, [*ceilings("key_limits", "limits"), own])
        for model, limits in value.model_limits.items():
            above = [*self._model_ceiling(model), *ceilings("limits"), own]
            if plan is not None and model in plan.model_limits:
                above.insert(0, Ceiling(plans, (*at, "model_limits", model), plan.model_limits[model]))
            self._limits(tenant, ("model_limits", model), limits, above)
            self._may_use(tenant, value, model, ())

    def _model_ceiling(self, model: str) -> list[Ceiling]:
        weir = self.files.weir
        found = weir.value.models.get(model) if weir.value is not None else None
        return [] if found is None else [Ceiling(weir, ("models", model, "limits"), found.limits)]

    def _may_use(self, document: Document[T], rights: schema.Rights, model: str, at: tuple[str, ...]) -> None:
        allowed = rights.models
        if allowed is not None and not {model, EVERY} & set(allowed) and model != EVERY and self._exists(model):
            where = document.source(*at, "models")
            self._wrong(document, f"limits a model that models at {where} does not allow", *at, "model_limits", model)

    def _exists(self, model: str) -> bool:
        """Whether a name is one of a model; another one is reported as unknown, and as nothing else."""
        known = self.files.weir.named("models")
        return model in known or EVERY in known or not known

    def _known_models(self, document: Document[T], rights: schema.Rights, at: tuple[str, ...]) -> None:
        weir = self.files.weir
        known = weir.named("models")
        if ("models",) not in weir.names:
            return
        named: list[tuple[str, Where]] = [
            (name, (*at, "models", index)) for index, name in enumerate(rights.models or [])
        ]
        named += [(name, (*at, "model_limits", name)) for name in rights.model_limits]
        for name, path in named:
            if name == EVERY or name in known:
                continue
            if EVERY not in known:
                others = [each for each in known if each != EVERY]
                self._wrong(document, f"unknown model {name}; {instead(name, others, 'no model is known')}", *path)
            elif (likely := guess(name, known, cutoff=0.85)) is not None:
                self._doubtful(
                    document, f'{name} has no entry in models and is served by "*"; did you mean {likely}?', *path
                )

    # --- limits ---

    def _limits(self, document: Document[T], at: Where, limits: schema.Limits, ceilings: list[Ceiling]) -> None:
        for name in limits.__struct_fields__:
            value: int | None = getattr(limits, name)
            if value is None:
                continue
            rate = _BURST_OF.get(name)
            for ceiling in ceilings:
                most = getattr(ceiling.limits, name)
                key = name
                if most is None and rate is not None:
                    most, key = getattr(ceiling.limits, rate), rate
                if most is not None and value > most:
                    where = ceiling.document.source(*ceiling.path, key)
                    sentence = f"{value} is wider than {most} at {where}; a lower level can only narrow"
                    self._wrong(document, sentence, *at, name)
                    break
            if rate is not None and all(
                getattr(each, rate) is None for each in (limits, *(c.limits for c in ceilings))
            ):
                self._wrong(document, f"has no effect without {rate}; add that, or remove this", *at, name)


def _printable(text: str) -> bool:
    return all("!" <= letter <= "~" for letter in text)


def _stem(file: str) -> str:
    return Path(file).stem
