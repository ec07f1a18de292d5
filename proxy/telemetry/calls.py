"""What one finished call adds to the counters: one look-up, then plain adds."""

from __future__ import annotations

from typing import NamedTuple

from proxy.call import UsageEvent
from proxy.telemetry.metrics import OVERFLOW_INDEX, Counters

_CACHE_MAX = 16_384  # label sets remembered: beyond it the memory starts anew


class _Cells(NamedTuple):
    requests: int
    tenant: int
    upstream: int  # -1 for a call that was never sent
    prompt: int
    cached: int
    completion: int
    reasoning: int
    audio: int
    cost: int
    unpriced: int
    first_byte: int
    total: int
    bytes: int
    frames: int


class CallMetrics:
    """The journey's side of `Counters`: `record` for each call that ended, `refuse` for each that was never opened."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._cells = counters.cells
        self._known: dict[tuple[str, int, str, str, str, str], _Cells] = {}

    def record(self, event: UsageEvent) -> None:
        """Counts a finished call. `event.model` must be a model of the policy, never a client's own invention."""
        key = (event.endpoint, event.status, event.termination, event.tenant, event.model, event.upstream)
        known = self._known.get(key)
        if known is None:
            known = self._find(event)
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            if OVERFLOW_INDEX not in known:  # else the table was busy: the next call asks again
                self._known[key] = known
        cells = self._cells
        cells[known.requests] += 1
        cells[known.tenant] += 1
        cells[known.bytes] += event.relayed_bytes
        cells[known.frames] += event.relayed_frames
        if event.prompt_tokens:
            cells[known.prompt] += event.prompt_tokens
        if event.completion_tokens:
            cells[known.completion] += event.completion_tokens
        if event.cached_tokens:
            cells[known.cached] += event.cached_tokens
        if event.reasoning_tokens:
            cells[known.reasoning] += event.reasoning_tokens
        if event.audio_tokens:
            cells[known.audio] += event.audio_tokens
        if event.price_version:
            cells[known.cost] += event.cost_nanos
        else:
            cells[known.unpriced] += 1
        if known.upstream >= 0:
            cells[known.upstream] += 1
            self._counters.observe(known.total, event.total_us)
            if event.first_us:
                self._counters.observe(known.first_byte, event.first_us)

    def connections(self, upstream: str, standing: int, made: int) -> None:
        """Says how many connections to an upstream stand now, and how many were made since the last time."""
        self._cells[self._counters.series("weir_upstream_connections", upstream)] = standing
        if made:
            self._counters.add(self._counters.series("weir_upstream_connects_total", upstream), made)

    def refuse(self, reason: str) -> None:
        """Counts a refusal by its code in `errors.KINDS`."""
        self._counters.add(self._counters.series("weir_refusals_total", reason))

    def _find(self, event: UsageEvent) -> _Cells:
        series = self._counters.series
        tenant, model, upstream = event.tenant, event.model, event.upstream
        return _Cells(
            requests=series("weir_requests_total", event.endpoint, str(event.status), event.termination),
            tenant=series("weir_tenant_requests_total", tenant),
            upstream=series("weir_upstream_requests_total", upstream, model, str(event.status)) if upstream else -1,
            prompt=series("weir_tokens_total", tenant, model, "prompt"),
            cached=series("weir_tokens_total", tenant, model, "cached"),
            completion=series("weir_tokens_total", tenant, model, "completion"),
            reasoning=series("weir_tokens_total", tenant, model, "reasoning"),
            audio=series("weir_tokens_total", tenant, model, "audio"),
            cost=series("weir_cost_nanodollars_total", tenant, model),
            unpriced=series("weir_unpriced_calls_total", model),
            first_byte=series("weir_first_byte_seconds", upstream, model) if upstream else -1,
            total=series("weir_request_seconds", upstream, model) if upstream else -1,
            bytes=series("weir_relayed_bytes_total"),
            frames=series("weir_frames_total"),
        )
