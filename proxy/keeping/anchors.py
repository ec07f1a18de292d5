"""The keeper's part in the audit log: it reads what is new, and signs for it outside the database.

What it finds broken it does not sign for: an alarm is raised and the anchors stand where they stood.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from proxy import bounds, clock
from proxy.audit import anchor, files
from proxy.audit.chain import GENESIS
from proxy.audit.verify import Walk
from proxy.store.store import BadData, Store, StoreUnavailable
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Counters

DAMAGE = "weir_audit_damage_total"


class Anchors:
    """Call `look` about every second, and `look(now=True)` at the end."""

    def __init__(self, data_dir: Path, store: Store, counters: Counters, log: Log) -> None:
        self._data_dir = data_dir
        self._path = data_dir / files.ANCHORS
        self._store = store
        self._counters = counters
        self._log = log
        self._private: Ed25519PrivateKey | None = None
        self._line: bytes | None = None  # the last one
        self._seq = 0  # anchored up to here
        self._hash = GENESIS
        self._at_ns: int | None = None  # of the last anchor of this life
        self._signing = threading.Lock()
        self._said: str | None = None  # the trouble that was last spoken of

    def __repr__(self) -> str:
        return f"[Anchors: up to row {self._seq}{', ' + self._said if self._said else ''}]"

    async def look(self, *, now: bool = False) -> None:
        """Anchors what is due: ANCHOR_ROWS new rows, or any that were there ANCHOR_SECONDS after the last anchor."""
        try:
            if self._private is None:
                distrusted = await asyncio.to_thread(self._open)
                if distrusted:
                    self._alarm(distrusted)
            head = await self._store.audit_head()
            if (head.seq, head.hash) == (self._seq, self._hash):
                return
            if head.seq <= self._seq:
                ends = f"the audit log ends at row {head.seq}, and row {self._seq} was anchored"
                other = f"row {head.seq} of the audit log is not the one that was anchored"
                self._alarm(other if head.seq == self._seq else ends)
                return
            waited = self._at_ns is None or clock.now_ns() - self._at_ns >= bounds.ANCHOR_SECONDS * 1_000_000_000
            if now or waited or head.seq - self._seq >= bounds.ANCHOR_ROWS:
                self._at_ns = clock.now_ns()
                await self._catch_up(head.seq)
        except (StoreUnavailable, BadData):
            return  # others say that the database is away
        except (OSError, ValueError) as error:
            self._say(f"the audit log cannot be anchored: {error}")

    def _open(self) -> str:
        """In a thread. Returns what an alarm is to say, or nothing."""
        private = files.private_key(self._data_dir)
        public = private.public_key().public_bytes_raw()
        last = files.mend(self._path)
        wrong: list[str] = []
        if last:
            # The last line alone decides where to go on; `weir audit verify` reads them all.
            found, wrong = anchor.read(last[-1:], {anchor.key_id(public): public}, last[0] if len(last) > 1 else None)
            self._line = last[-1]
            if found:
                self._seq, self._hash = found[-1].seq, bytes.fromhex(found[-1].hash)
        self._private = private
        return f"the last anchor cannot be trusted, the log is read from its first row: {wrong[0]}" if wrong else ""

    async def _catch_up(self, until: int) -> None:
        """Reads every row after the last anchor, and signs for the last of each page that holds."""
        while self._seq < until:
            rows, _ = await self._store.audit_after(self._seq, bounds.AUDIT_PAGE_ROWS)
            walk = Walk(after=(self._seq, self._hash))
            for row in rows:
                walk.step(row)
            if walk.findings or not rows:
                self._alarm(walk.findings[0].sentence if walk.findings else f"rows after {self._seq} are missing")
                return
            await asyncio.to_thread(self._sign, walk.last_seq, walk.last_hash)
            # In the log too: whoever collects it has a copy out of this host's reach.
            self._log.info("audit anchor", row=walk.last_seq, hash=walk.last_hash.hex())
            self._said = None

    def _sign(self, seq: int, row_hash: bytes) -> None:
        """In a thread, which a cancelled duty leaves behind: the next one waits for it, and goes on from its line."""
        with self._signing:
            if self._private is None or seq <= self._seq:
                return
            line = anchor.sign(self._private, seq, row_hash, clock.wall_us(), self._line)
            files.append(self._path, line)
            self._line, self._seq, self._hash = line, seq, row_hash

    def _alarm(self, sentence: str) -> None:
        if self._said != sentence:
            self._counters.add(self._counters.series(DAMAGE))
        self._say(sentence, advice="run weir audit verify")

    def _say(self, sentence: str, **fields: str) -> None:
        if self._said != sentence:
            self._log.error(sentence, **fields)
        self._said = sentence
