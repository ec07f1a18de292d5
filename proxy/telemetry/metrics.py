"""Counters that outlive the process that counts.

One mapped file a data directory: a header, a table of series that only grows, and for each column one array of 64-bit
cells. A column has one writer at a time (a worker life, the keeper, the supervisor), so counting is a plain add.
Nothing is ever set back: a new life in a column goes on from what stands there, and the sum over columns never falls.

    header 4096 B | table METRIC_TABLE_BYTES | column 0: METRIC_CELLS_MAX × u64 | column 1 | …

The table is appended to under an flock of the file. Its used-bytes word is one native store after the entry, so a
reader without the lock sees a whole entry or none, and a writer that dies in between leaves nothing behind. All of the
file is allocated when it is made: a store into a hole of a full disk would kill the process.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from proxy import bounds, clock
from proxy._fastpath import Cells
from proxy.telemetry.families import BUCKETS_US, FAMILIES, HISTOGRAM_CELLS, OTHER, OVERFLOW

KEEPER_COLUMN = bounds.COLUMNS  # the columns below it are the workers'
SUPERVISOR_COLUMN = bounds.COLUMNS + 1
OVERFLOW_INDEX = 0  # the first series of every file; what `series` answers when it can give no other
_COLUMNS = bounds.COLUMNS + 2

_MAGIC = 0x5745_4952_4D45_5431  # "WEIRMET1"
_HEADER_BYTES = 4096
_HEADER = struct.Struct("=5Q")  # magic, table bytes, cells, columns, used table bytes
_USED_WORD = 4
_ENTRY = struct.Struct("=HHI")  # bytes of the text, width in cells, first cell
_COLUMN_BYTES = bounds.METRIC_CELLS_MAX * 8
_COLUMNS_AT = _HEADER_BYTES + bounds.METRIC_TABLE_BYTES
_FILE_BYTES = _COLUMNS_AT + _COLUMNS * _COLUMN_BYTES
_BOUNDED = {"tenant": bounds.TENANT_LABELS_MAX, "model": bounds.MODEL_LABELS_MAX}
_RESERVED_CELLS = 2 * HISTOGRAM_CELLS * len(FAMILIES)  # kept back for the `other` series of each family
_RESERVED_BYTES = 256 * len(FAMILIES)
_CACHE_MAX = 4 * bounds.SERIES_MAX  # label sets remembered by one process, those that are counted as `other` included
_LABEL_BYTES_MAX = bounds.MODEL_BYTES_MAX  # longer label values are cut
_LOCK_TRIES = 20  # an append takes microseconds; 4 ms is the longest that a call may be held up by another process
_LOCK_TRY_SECONDS = 0.0002
_LAST_BUCKET = len(BUCKETS_US)


class Series(NamedTuple):
    """One entry of the table: `width` cells from `first` on."""

    name: str
    labels: tuple[str, ...]
    first: int
    width: int


class Counters:
    """The counters of one process. `path` is the data directory's `metrics` file; it is created when absent.

    `column` is the worker life's, KEEPER_COLUMN or SUPERVISOR_COLUMN; -1 reads only. Raises OSError when the file
    cannot be had. Not thread-safe but for `cells`, which one thread at a time may write.
    """

    def __init__(self, path: str | os.PathLike[str], column: int = -1) -> None:
        self._fd = _open(os.fspath(path))
        self._map = mmap.mmap(self._fd, _FILE_BYTES)
        self._view = memoryview(self._map)
        self._words = self._view[:_HEADER_BYTES].cast("Q")
        self._columns = self._view[_COLUMNS_AT:].cast("Q")
        at = max(column, 0) * bounds.METRIC_CELLS_MAX
        self.column = column
        #: this process's own cells: `cells[index] += 1` is the whole cost of counting
        self.cells = self._columns[at : at + bounds.METRIC_CELLS_MAX]
        self._many = Cells(self.cells, BUCKETS_US)
        #: `add_all(tally, *amounts)`: what one event adds to several series at once
        self.add_all = self._many.add
        self._series: dict[tuple[str, ...], Series] = {}
        self._known: dict[str, set[str]] = {label: set() for label in _BOUNDED}
        self._read_bytes = 0
        self._next_cell = 0
        self._cache: dict[tuple[str, ...], int] = {}
        self._refresh()

    def series(self, name: str, *labels: str) -> int:
        """The index of a series' first cell, made when it is new; labels in the order of the family's table.

        OVERFLOW_INDEX while the table is held by a process that was stopped: ask again for the next count. A tenant or
        model beyond the bound becomes `other`, and so does every label once the table is full. Raises KeyError for a
        family that is not declared, ValueError for a wrong number of labels.
        """
        found = self._cache.get((name, *labels))
        return found if found is not None else self._look_up(name, labels)

    def add(self, index: int, n: int = 1) -> None:
        """Adds `n` to a cell of this process's column."""
        self.cells[index] += n

    def observe(self, index: int, value_us: int) -> None:
        """Counts one duration in microseconds in the histogram that begins at `index`."""
        cells = self.cells
        if index == OVERFLOW_INDEX:
            cells[index] += 1
            return
        cells[index + bisect_left(BUCKETS_US, value_us)] += 1
        cells[index + _LAST_BUCKET + 1] += value_us

    def total(self, name: str, *labels: str) -> int:
        """Sum over all columns of one counter: 0 when nobody has counted it."""
        self._refresh()
        found = self._series.get((name, *labels))
        return 0 if found is None else self.sum(found.first)

    def sum(self, index: int) -> int:
        """Sum of one cell over all columns."""
        return sum(self._columns[index :: bounds.METRIC_CELLS_MAX])

    def value(self, column: int, index: int) -> int:
        """One cell of one column."""
        return self._columns[column * bounds.METRIC_CELLS_MAX + index]

    def each(self) -> Iterator[Series]:
        """Every series in the table, those of other processes included."""
        self._refresh()
        yield from tuple(self._series.values())

    def close(self) -> None:
        """Unmaps the file. What was counted stays."""
        self._cache.clear()
        self._many.close()
        self.cells.release()
        self._columns.release()
        self._words.release()
        self._view.release()
        self._map.close()
        os.close(self._fd)

    def _look_up(self, name: str, labels: tuple[str, ...]) -> int:
        family = FAMILIES[name]
        if len(labels) != len(family.labels):
            raise ValueError(f"{name} has the labels {', '.join(family.labels) or 'none'}, not {len(labels)} values")
        wanted = tuple(_clean(label) for label in labels)
        self._refresh()
        known = self._series.get((name, *wanted))
        if known is None:
            if not self._lock():
                return OVERFLOW_INDEX
            try:
                known = self._register(name, wanted)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[(name, *labels)] = known.first
        return known.first

    def _lock(self) -> bool:
        """Takes the table's lock. False when another process sits on it, stopped: waiting would stall every call."""
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                clock.pause(_LOCK_TRY_SECONDS)
        return False

    def _register(self, name: str, labels: tuple[str, ...]) -> Series:
        """Finds or appends a series; the caller holds the lock."""
        self._refresh()
        family = FAMILIES[name]
        bounded = tuple(self._bounded(kind, value) for kind, value in zip(family.labels, labels, strict=True))
        width = HISTOGRAM_CELLS if family.type == "histogram" else 1
        for candidate, reserve in ((bounded, True), ((OTHER,) * len(labels), False)):
            known = self._series.get((name, *candidate))
            if known is not None:
                return known
            if self._append(name, candidate, width, reserve):
                return self._series[(name, *candidate)]
        return self._series[(OVERFLOW,)]

    def _bounded(self, kind: str, value: str) -> str:
        known = self._known.get(kind)
        if known is None or value in known or len(known) < _BOUNDED[kind]:
            return value
        return OTHER

    def _append(self, name: str, labels: tuple[str, ...], width: int, reserve: bool) -> bool:
        used_bytes, used_cells = self._read_bytes, self._next_cell
        text = "\x1f".join((name, *labels)).encode()
        size = _ENTRY.size + len(text)
        spare_bytes, spare_cells = (_RESERVED_BYTES, _RESERVED_CELLS) if reserve else (0, 0)
        if used_bytes + size > bounds.METRIC_TABLE_BYTES - spare_bytes:
            return False
        if used_cells + width > bounds.METRIC_CELLS_MAX - spare_cells:
            return False
        if reserve and len(self._series) >= bounds.SERIES_MAX - 2 * len(FAMILIES):
            return False
        at = _HEADER_BYTES + used_bytes
        _ENTRY.pack_into(self._map, at, len(text), width, used_cells)
        self._map[at + _ENTRY.size : at + size] = text
        self._words[_USED_WORD] = used_bytes + size
        self._refresh()
        return True

    def _refresh(self) -> None:
        used_bytes = self._words[_USED_WORD]
        while self._read_bytes < used_bytes:
            at = _HEADER_BYTES + self._read_bytes
            length, width, first = _ENTRY.unpack_from(self._map, at)
            name, *labels = self._map[at + _ENTRY.size : at + _ENTRY.size + length].decode().split("\x1f")
            self._series[(name, *labels)] = Series(name, tuple(labels), first, width)
            self._read_bytes += _ENTRY.size + length
            self._next_cell = first + width
            family = FAMILIES.get(name)
            for kind, value in zip(family.labels if family else (), labels, strict=False):
                if kind in _BOUNDED and value != OTHER:
                    self._known[kind].add(value)


def _clean(label: str) -> str:
    """A label value as it is kept: bounded, and without the table's separator."""
    if len(label) > _LABEL_BYTES_MAX or "\x1f" in label or not label.isprintable():
        label = "".join(char if char.isprintable() else "?" for char in label)
        label = label.encode("utf-8", "replace")[:_LABEL_BYTES_MAX].decode("utf-8", "ignore")
    return label


def _open(path: str) -> int:
    """A descriptor of a sound file. Whoever meets none, or one of another layout, makes it under the file's lock."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _same_file(fd, path):
                os.close(fd)  # replaced while this process waited
                continue
            if os.fstat(fd).st_size == 0:
                _initialise(fd)  # nobody maps a file before it is sound
            if _sound(fd):
                fcntl.flock(fd, fcntl.LOCK_UN)
                return fd
            # Others may have the old file mapped: it is replaced, never cut, and they go on counting in the old one.
            fresh = os.open(path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _initialise(fresh)
            finally:
                os.close(fresh)
            os.replace(path + ".new", path)
            os.close(fd)
        except BaseException:
            os.close(fd)
            raise


def _same_file(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _initialise(fd: int) -> None:
    """A new file with its one first series, the overflow. The header comes last: half a file is not sound."""
    os.posix_fallocate(fd, 0, _FILE_BYTES)
    text = OVERFLOW.encode()
    os.pwrite(fd, _ENTRY.pack(len(text), 1, 0) + text, _HEADER_BYTES)
    size = _ENTRY.size + len(text)
    os.pwrite(fd, _HEADER.pack(_MAGIC, bounds.METRIC_TABLE_BYTES, bounds.METRIC_CELLS_MAX, _COLUMNS, size), 0)


def _sound(fd: int) -> bool:
    """Whether the layout is this program's and the table can be read to its end."""
    if os.fstat(fd).st_size != _FILE_BYTES:
        return False
    magic, table, cells, columns, used_bytes = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    if (magic, table, cells, columns) != (_MAGIC, bounds.METRIC_TABLE_BYTES, bounds.METRIC_CELLS_MAX, _COLUMNS):
        return False
    if not 0 < used_bytes <= table:
        return False
    text = os.pread(fd, used_bytes, _HEADER_BYTES)
    at = 0
    next_cell = 0
    while at < used_bytes:
        if at + _ENTRY.size > used_bytes:
            return False
        length, width, first = _ENTRY.unpack_from(text, at)
        end = at + _ENTRY.size + length
        # A family may have changed its kind between versions: its cells would then mean something else.
        family = FAMILIES.get(text[at + _ENTRY.size : end].split(b"\x1f")[0].decode("utf-8", "replace"))
        wanted = width if family is None else HISTOGRAM_CELLS if family.type == "histogram" else 1
        if end > used_bytes or first != next_cell or width != wanted:
            return False
        next_cell += width
        at = end
    return next_cell <= bounds.METRIC_CELLS_MAX
