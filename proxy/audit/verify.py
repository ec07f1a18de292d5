"""Reads the chain from its first row to its head and says what does not hold, row by row. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from proxy import bounds
from proxy.audit.anchor import Anchor
from proxy.audit.chain import GENESIS, Entry, hash_of


class Finding(Struct, frozen=True):
    """`kind`: changed, link, missing, order, rewritten, truncated, head, anchor. `seq` 0: no row of the log."""

    kind: str
    seq: int
    sentence: str


class Walk:
    """Give it every row in the order in which it stands, then ask `end` for the findings (bounded).

    `after`: the row (and its hash) after which the reading begins; as a rule, before the first.
    """

    def __init__(self, anchors: Sequence[Anchor] = (), after: tuple[int, bytes] = (0, GENESIS)) -> None:
        self.rows = 0
        self.last_seq, self.last_hash = after
        self.findings: list[Finding] = []
        self._anchors: dict[int, list[Anchor]] = {}
        for anchor in anchors:
            self._anchors.setdefault(anchor.seq, []).append(anchor)
        self._anchored_last = max((anchor.seq for anchor in anchors), default=0)
        self.anchored_good = 0  # the last row whose anchor agreed

    def find(self, kind: str, seq: int, sentence: str) -> None:
        """Adds a finding, up to the bound."""
        if len(self.findings) < bounds.AUDIT_FINDINGS_MAX:
            self.findings.append(Finding(kind, seq, sentence))

    def step(self, entry: Entry) -> None:
        """One row."""
        self.rows += 1
        seq = entry.seq
        if seq <= self.last_seq:
            self.find("order", seq, f"row {seq} stands after row {self.last_seq}: rows were moved or inserted")
        elif seq > self.last_seq + 1:
            self.find("missing", self.last_seq + 1, f"{_rows(self.last_seq + 1, seq - 1)} missing")
        elif entry.previous != self.last_hash:
            # Only between neighbours: after a gap there is nothing to compare with.
            self.find("link", seq, f"row {seq} does not hold the hash of row {seq - 1} before it")
        if entry.hash != hash_of(entry):
            self.find("changed", seq, f"row {seq} was changed: its hash is not that of its content")
        for anchor in self._anchors.pop(seq, ()):
            if bytes.fromhex(anchor.hash) == entry.hash:
                self.anchored_good = max(self.anchored_good, seq)
            else:
                since = f"row {self.anchored_good}" if self.anchored_good else "the first row"
                self.find(
                    "rewritten",
                    seq,
                    f"row {seq} is not the one that was anchored: something after {since}, up to it, was rewritten",
                )
        self.last_seq = max(self.last_seq, seq)
        self.last_hash = entry.hash

    def end(self, head: tuple[int, bytes] | None = None) -> list[Finding]:
        """After the last row; `head` is the head row's word of it, where there is one."""
        if self._anchored_last > self.last_seq:
            self.find(
                "truncated",
                self.last_seq + 1,
                f"{_rows(self.last_seq + 1, self._anchored_last)} missing from the end, and row {self._anchored_last} "
                "was anchored",
            )
        for seq in sorted(self._anchors):
            if seq <= self.last_seq:
                self.find("missing", seq, f"row {seq} is missing: it was anchored")
        if head is not None and head != (self.last_seq, self.last_hash):
            self.find("head", head[0], f"the head says that row {head[0]} is the last; the last one is {self.last_seq}")
        return self.findings


def _rows(first: int, last: int) -> str:
    return f"row {first} is" if first == last else f"rows {first} to {last} are"
