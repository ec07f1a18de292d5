"""What one finished call adds to the counters: one look-up, then one addition to all of them."""

from __future__ import annotations

from proxy._fastpath import Tally
from proxy.call import UsageEvent
from proxy.telemetry.metrics import OVERFLOW_INDEX, Counters

_CACHE_MAX = 16_384  # label sets remembered: beyond it the memory starts anew
_NOWHERE = -1  # the series of an upstream, of a call that was never sent


class CallMetrics:
    """The journey's side of `Counters`: `record` for each call that ended, `refuse` for each that was never opened."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._add_all = counters.add_all
        self._known: dict[tuple[str, int, str, str, str, str], Tally] = {}

    def record(self, event: UsageEvent) -> None:
        """Counts a finished call. `event.model` must be a model of the policy, never a client's own invention."""
        known = self._known.get(
            (event.endpoint, event.status, event.termination, event.tenant, event.model, event.upstream)
        )
        # In the order of `_find`. Without a price the cost is 0, and the call is one of those that have none.
        self._add_all(
            known if known is not None else self._find(event),
            1,
            1,
            1,
            event.relayed_bytes,
            event.relayed_frames,
            event.prompt_tokens,
            event.cached_tokens,
            event.completion_tokens,
            event.reasoning_tokens,
            event.audio_tokens,
            event.cost_nanos,
            0 if event.price_version else 1,
            event.total_us,
            event.first_us or -1,
        )

    def connections(self, upstream: str, standing: int, made: int) -> None:
        """Says how many connections to an upstream stand now, and how many were made since the last time."""
        self._counters.cells[self._counters.series("weir_upstream_connections", upstream)] = standing
        if made:
            self._counters.add(self._counters.series("weir_upstream_connects_total", upstream), made)

    def refuse(self, reason: str) -> None:
        """Counts a refusal by its code in `errors.KINDS`."""
        self._counters.add(self._counters.series("weir_refusals_total", reason))

    def _find(self, event: UsageEvent) -> Tally:
        """Where such calls are counted; remembered, unless the table was busy: the next one then asks again."""
        series = self._counters.series
        tenant, model, upstream = event.tenant, event.model, event.upstream
        sent = bool(upstream)
        counters = (
            series("weir_requests_total", event.endpoint, str(event.status), event.termination),
            series("weir_tenant_requests_total", tenant),
            series("weir_upstream_requests_total", upstream, model, str(event.status)) if sent else _NOWHERE,
            series("weir_relayed_bytes_total"),
            series("weir_frames_total"),
            series("weir_tokens_total", tenant, model, "prompt"),
            series("weir_tokens_total", tenant, model, "cached"),
            series("weir_tokens_total", tenant, model, "completion"),
            series("weir_tokens_total", tenant, model, "reasoning"),
            series("weir_tokens_total", tenant, model, "audio"),
            series("weir_cost_nanodollars_total", tenant, model),
            series("weir_unpriced_calls_total", model),
        )
        histograms = (
            series("weir_request_seconds", upstream, model) if sent else _NOWHERE,
            series("weir_first_byte_seconds", upstream, model) if sent else _NOWHERE,
        )
        tally = Tally(counters, histograms)
        if len(self._known) >= _CACHE_MAX:
            self._known.clear()
        if OVERFLOW_INDEX not in counters + histograms:
            self._known[event.endpoint, event.status, event.termination, tenant, model, upstream] = tally
        return tally
