"""One connection without a network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.front.fakes import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Closed when the test ends."""
    made = Bench()
    yield made
    made.close()
