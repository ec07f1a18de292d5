"""The scripted upstream's ledger, and the property that every fault test ends with (DESIGN section 6).

`check` compares three independent witnesses: what the upstream says it was asked and sent, what the rows say, and what
the clients received. It returns findings, one sentence each; none means nothing lost and nothing counted twice.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

Row = Mapping[str, Any]  # a usage row by column name, as `weir usage --rows --json` prints it


class Seen(NamedTuple):
    """What one client received of one request."""

    ended: Literal["complete", "cut", "refused", "no_answer"]
    status: int = 0
    frames: int = 0  # data frames received whole; 1 for a whole answer that is not a stream
    bytes: int = 0  # payload bytes
    completion_tokens: int = -1  # as the answer's usage says; -1 when none was received


class Ledger:
    """Appends events, in memory and, with a path, to the file. Numbers go on where an older ledger ended."""

    def __init__(self, path: Path | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.n = 0
        self._keep = path is None
        self._fd = -1
        if path is not None:
            if path.exists():
                self.n = max((event["n"] for event in read_ledger(path)), default=0)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: dict[str, Any]) -> None:
        """One event. It is in the file when this returns."""
        if self._keep:
            self.events.append(event)
        else:
            os.write(self._fd, json.dumps(event, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """No event may follow."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All events of a ledger's file, in order."""
    with open(path, "rb") as file:
        return [json.loads(line) for line in file if line.endswith(b"\n")]


def check(
    ledger: Iterable[Mapping[str, Any]], rows: Iterable[Row], clients: Mapping[str, Seen] | None = None
) -> list[str]:
    """The property. `clients` maps each X-Request-ID to what its client received; every request has its own id.

    - Each request of the ledger has exactly one row, found by the upstream's request id, else by the client's.
    - A row without one relayed no bytes and has no completion tokens.
    - A call that completed has the upstream's own tokens, and so has every row that says the provider counted.
    - Frames and bytes: client received <= row <= upstream sent; equal where the client saw the end.
    """
    findings: list[str] = []
    requests: dict[int, Mapping[str, Any]] = {}
    ends: dict[int, Mapping[str, Any]] = {}
    for event in ledger:
        (requests if event["event"] == "request" else ends)[event["n"]] = event
    rows = list(rows)
    findings += _doubles(requests, rows)
    by_upstream = {row["upstream_request_id"]: row for row in rows if row["upstream_request_id"]}
    by_client = {row["request_id"]: row for row in rows if not row["upstream_request_id"]}
    asked = set()
    for n, request in requests.items():
        if request["path"] == "/v1/models":
            continue
        asked.add(request["id"])
        row = by_upstream.get(f"up-{n}") or by_client.get(request["id"])
        if row is None:
            findings.append(f"lost: the upstream's request {n} ({request['id']}) has no row")
        elif n not in ends:
            findings.append(f"unfinished: the upstream's request {n} ({request['id']}) has no end in the ledger")
        else:
            findings += _compare(n, row, ends[n])
    for row in rows:
        name = f"row {row['epoch']}/{row['call']} ({row['request_id']})"
        if row["request_id"] not in asked and (row["relayed_bytes"] or row["completion_tokens"]):
            findings.append(f"invented: {name} has tokens or bytes, but the upstream never saw it")
        if clients is not None:
            seen = clients.get(row["request_id"])
            findings += [f"{name}: {what}" for what in _received(row, seen)] if seen else [f"{name}: nobody sent it"]
    if clients is not None:
        known = {row["request_id"] for row in rows}
        for request_id, seen in clients.items():
            if seen.status == 200 and request_id not in known:
                findings.append(f"lost: the client of {request_id} was answered, and there is no row")
    return findings


def _doubles(requests: Mapping[int, Mapping[str, Any]], rows: list[Row]) -> list[str]:
    findings = []
    for what, counts in (
        ("rows with the key", Counter(f"{row['epoch']}/{row['call']}" for row in rows)),
        ("rows of the upstream's", Counter(row["upstream_request_id"] for row in rows if row["upstream_request_id"])),
        ("rows of the client's", Counter(row["request_id"] for row in rows)),
        ("requests upstream of the client's", Counter(request["id"] for request in requests.values())),
    ):
        findings += [f"double: {count} {what} {name}" for name, count in counts.items() if count > 1]
    return findings


def _compare(n: int, row: Row, end: Mapping[str, Any]) -> list[str]:
    """A row against the upstream's own account of the same request."""
    findings = []
    name = f"row {row['epoch']}/{row['call']} (up-{n}, {row['termination']})"
    if row["termination"] == "complete" and end["how"] != "complete":
        findings.append(f"{name}: says complete, but the upstream's answer ended as {end['how']}")
    counted = row["source"] == "provider"
    if row["termination"] == "complete" and end["usage_sent"] and not counted:
        findings.append(f"{name}: is {row['source']}, although the upstream sent its usage")
    if counted and end["status"] == 200:
        for column in ("prompt_tokens", "completion_tokens"):
            if row[column] != end[column]:
                findings.append(f"{name}: {column} is {row[column]}, the upstream's is {end[column]}")
    if end["status"] == 200:
        for column, sent in (("relayed_frames", end["frames"]), ("relayed_bytes", end["bytes"])):
            if row[column] > sent:
                findings.append(f"{name}: {column} is {row[column]}, the upstream sent only {sent}")
    return findings


def _received(row: Row, seen: Seen) -> list[str]:
    """A row against what its client received."""
    findings = []
    for column, got in (("relayed_frames", seen.frames), ("relayed_bytes", seen.bytes)):
        if seen.status == 200 and row[column] < got:
            findings.append(f"{column} is {row[column]}, the client received {got}")
        elif seen.ended == "complete" and seen.status == 200 and row[column] != got:
            findings.append(f"{column} is {row[column]}, the client received the whole answer and counts {got}")
    if seen.completion_tokens >= 0 and row["completion_tokens"] != seen.completion_tokens:
        findings.append(f"completion_tokens is {row['completion_tokens']}, the client read {seen.completion_tokens}")
    if row["termination"] == "complete" and row["status"] == 200 and seen.ended == "refused":
        findings.append(f"says complete, but the client was refused with {seen.status}")
    return findings
