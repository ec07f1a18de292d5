"""Databases, a log and short waits for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import bounds
from tests.flush.flushing import Lines
from tests.store.databases import empty_url, postgres_database, postgres_url, sqlite_template, sqlite_url, url

__all__ = ["empty_url", "postgres_database", "postgres_url", "sqlite_template", "sqlite_url", "url"]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """The flusher's log."""
    found = Lines(tmp_path / "log")
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries scaled to the test's patience; and a Redis that waits for its turn to run is not away."""
    monkeypatch.setattr(bounds, "FLUSH_BACKOFF_SECONDS_MAX", 0.2)
    monkeypatch.setattr(bounds, "REDIS_SECONDS_MAX", 5.0)
