"""The metrics page as Prometheus parses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.telemetry.document import markdown
from proxy.telemetry.exposition import Page, render
from proxy.telemetry.families import FAMILIES
from proxy.telemetry.metrics import Counters

_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.mark.parametrize(("accept", "parse"), [("text/plain", parse_text), (_OPENMETRICS, parse_openmetrics)])
def test_page_parses_and_sums(tmp_path: Path, accept: str, parse: object) -> None:
    """Both text formats parse, with the sums over columns, seconds for times, and hostile labels quoted."""
    one, two = Counters(tmp_path / "metrics", 0), Counters(tmp_path / "metrics", 1)
    hostile = 'a "model"\\x'
    for counters, amount in ((one, 3), (two, 4)):
        counters.add(counters.series("weir_tokens_total", "acme", hostile, "prompt"), amount)
        counters.observe(counters.series("weir_request_seconds", "up", "m"), 30_000)
        counters.cells[counters.series("weir_upstream_connections", "up")] = amount
    gauges = {"weir_redis_up": {(): 1.0}, "weir_journal_epochs": {("alive",): 2, ("dead",): 0}}
    text, content_type = render(Page(one, gauges, [1]), accept)
    one.close()
    two.close()
    assert content_type.startswith(accept.split(";")[0])
    families = {family.name: family for family in parse(text.decode())}  # type: ignore[operator]
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["weir_tokens_total", (("kind", "prompt"), ("model", hostile), ("tenant", "acme"))] == 7
    labels = (("model", "m"), ("upstream", "up"))
    assert samples["weir_request_seconds_count", labels] == 2
    assert samples["weir_request_seconds_sum", labels] == pytest.approx(0.06)
    bucket = {name: value for name, value in samples.items() if name[0] == "weir_request_seconds_bucket"}
    assert sorted(bucket.values()) == [0] * 3 + [2] * 13
    # A gauge counts only in the columns that live: column 0 is a dead worker's.
    assert samples["weir_upstream_connections", (("upstream", "up"),)] == 4
    assert samples["weir_redis_up", ()] == 1
    assert samples["weir_journal_epochs", (("state", "alive"),)] == 2
    assert "weir_database_up" not in families
    # An alarm stands at 0 before its first count: Prometheus sees no increase in what was not there.
    assert samples["weir_journal_damage_total", ()] == 0
    plain = {name for name, family in FAMILIES.items() if family.type == "counter" and not family.labels}
    assert plain <= {name for name, labels in samples if labels == ()}
    assert len(plain) > 10


def test_every_family_tells_what_it_is_and_what_to_do() -> None:
    """The table is what docs/operating.md is made of: names follow Prometheus' rules and every row has its advice."""
    for name, family in FAMILIES.items():
        assert name == family.name
        assert name.startswith("weir_")
        assert (family.type == "counter") == name.endswith("_total"), name
        assert family.help.endswith(".")
        assert family.advice.endswith(".")
        assert family.home == "cells" or family.type == "gauge"
        assert "|" not in family.help + family.advice
    assert markdown().count("\n") == len(FAMILIES) + 2
