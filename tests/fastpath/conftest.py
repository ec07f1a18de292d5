"""An arena of its own for each test, small or of full size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy._fastpath import Arena

OpenArena = Callable[..., Arena]


@pytest.fixture
def open_arena(tmp_path: Path) -> Iterator[OpenArena]:
    """Opens the test's arena, as often as one likes; all are closed at the end."""
    opened: list[Arena] = []

    def open_one(column: int = 0, boot_id: str = "boot-1", rate_cells: int = 64, count_cells: int = 64) -> Arena:
        arena = Arena(tmp_path / "arena", boot_id, column, rate_cells=rate_cells, count_cells=count_cells)
        opened.append(arena)
        return arena

    yield open_one
    for arena in opened:
        arena.close()
