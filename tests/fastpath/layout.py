"""Reads and writes an arena's file from outside, by the layout that `_arena.h` documents and without its code."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

KEY = 1 << 63
EMPTY, LEAVING, DEAD = 0, 1, 2  # tags of hi
FREE, RELEASING = 0, 1  # tags of lo
COLUMNS = 32
RATE_BYTES = 32
COUNT_BYTES = 64 + 16 * COLUMNS
LAYOUT_OFFSET = 8


class Cell(NamedTuple):
    """The words that all cells begin with; `amount` is the arrival time of a rate cell."""

    index: int
    lo: int
    hi: int
    amount: int
    touched_ns: int

    @property
    def live(self) -> bool:
        return self.lo >= KEY and self.hi >= KEY


class File:
    """An arena's file, mapped beside the processes that use it."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.map = mmap.mmap(fd, 0)
        os.close(fd)
        words: tuple[int, ...] = struct.unpack_from("<8Q", self.map)
        self.layout, self.size, self.rate_cells, self.count_cells, self.rate_offset, self.count_offset = words[1:7]

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.map.close()

    def at(self, index: int, *, rate: bool = True) -> int:
        """The offset of a cell in the file."""
        return self.rate_offset + index * RATE_BYTES if rate else self.count_offset + index * COUNT_BYTES

    def cell(self, index: int, *, rate: bool = True) -> Cell:
        return Cell(index, *struct.unpack_from("<QQqq", self.map, self.at(index, rate=rate)))

    def cells(self, *, rate: bool = True) -> list[Cell]:
        """Every cell that is not free."""
        found = (self.cell(index, rate=rate) for index in range(self.rate_cells if rate else self.count_cells))
        return [cell for cell in found if cell.lo >= KEY or cell.lo & 3 == RELEASING]

    def write(self, index: int, *, lo: int | None = None, hi: int | None = None, rate: bool = True) -> None:
        at = self.at(index, rate=rate)
        if lo is not None:
            struct.pack_into("<Q", self.map, at, lo)
        if hi is not None:
            struct.pack_into("<Q", self.map, at + 8, hi)

    def doubles(self, *, rate: bool = True) -> list[tuple[int, int]]:
        """Keys that have more than one live cell: there must never be any."""
        keys = [(cell.lo, cell.hi) for cell in self.cells(rate=rate) if cell.live]
        return [key for key in set(keys) if keys.count(key) > 1]
