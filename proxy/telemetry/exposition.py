"""Counters and gauges as Prometheus reads them. The sums are made here, at the scrape, over all columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from proxy.telemetry.families import BUCKETS_US, FAMILIES, HISTOGRAM_CELLS
from proxy.telemetry.family import Family
from proxy.telemetry.metrics import Counters, Series

# A gauge's values by label values; a family that is absent here is absent from the page.
Gauges = Mapping[str, Mapping[tuple[str, ...], float]]


class Page(Collector):
    """One scrape: what the mapped file holds, and the keeper's own `gauges`.

    `columns` are those whose gauges count: a dead worker's counters go on for ever, but it has no open connections.
    """

    def __init__(self, counters: Counters, gauges: Gauges, columns: Sequence[int]) -> None:
        self._counters = counters
        self._gauges = gauges
        self._columns = columns

    def collect(self) -> Iterator[Metric]:
        """Families in the order of their table."""
        series: dict[str, list[Series]] = {}
        for one in self._counters.each():
            series.setdefault(one.name, []).append(one)
        for family in FAMILIES.values():
            if family.home == "keeper":
                values = self._gauges.get(family.name)
                if values is not None:
                    yield self._keeper_gauge(family, values)
            elif family.name in series:
                yield self._from_cells(family, series[family.name])
            elif family.type == "counter" and not family.labels:
                # From the start: an alarm that only appears with its first count shows no increase to who watches it.
                yield CounterMetricFamily(family.name, family.help, value=0)

    def _keeper_gauge(self, family: Family, values: Mapping[tuple[str, ...], float]) -> Metric:
        gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
        for labels, value in sorted(values.items()):
            gauge.add_metric(labels, value)
        return gauge

    def _from_cells(self, family: Family, series: Iterable[Series]) -> Metric:
        if family.type == "histogram":
            histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for one in series:
                counts = [self._counters.sum(one.first + cell) for cell in range(HISTOGRAM_CELLS)]
                histogram.add_metric(one.labels, _cumulative(counts), counts[-1] / 1e6)
            return histogram
        if family.type == "gauge":
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for one in series:
                gauge.add_metric(one.labels, sum(self._counters.value(column, one.first) for column in self._columns))
            return gauge
        counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
        for one in series:
            counter.add_metric(one.labels, self._counters.sum(one.first))
        return counter


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound_us, count in zip(BUCKETS_US, counts, strict=False):
        total += count
        buckets.append((f"{bound_us / 1e6:g}", total))
    buckets.append(("+Inf", total + counts[len(BUCKETS_US)]))
    return buckets


def render(page: Page, accept: str) -> tuple[bytes, str]:
    """The page in the format that an Accept header asks for, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(page)
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type
