"""Request lines: whole, bounded, never blocking, and without secrets."""

from __future__ import annotations

import json
import logging
import os
import select
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from proxy import bounds
from proxy.call import UsageEvent
from proxy.telemetry.calls import CallMetrics
from proxy.telemetry.log import Lines, Log, Refused, timestamp
from proxy.telemetry.metrics import Counters

EVENT = UsageEvent(
    call=7,
    tenant="acme",
    key_id="key_1",
    user="someone",
    tags=(("team", "blue"),),
    request_id="req_1",
    endpoint="chat.completions",
    model="demo-small",
    model_served="demo-small-1",
    upstream="demo",
    upstream_request_id="up_1",
    attempts=1,
    stream=True,
    status=200,
    termination="complete",
    prompt_tokens=12,
    cached_tokens=2,
    completion_tokens=34,
    reasoning_tokens=3,
    audio_tokens=0,
    source="provider",
    relayed_frames=5,
    relayed_bytes=900,
    cost_nanos=1_234_000,
    price_version="2026-01",
    started_us=1_795_315_741_123_456,
    queue_us=10,
    first_us=2_000,
    total_us=45_678,
)
REFUSED = Refused("invalid_api_key", 401, "chat.completions", "", "", "", "req_2", 1_795_315_741_000_000, 80)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def _lines(tmp_path: Path, mode: str, items: list[UsageEvent | Refused]) -> bytes:
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    try:
        lines = Lines(mode, epoch=b"\xab" * 16, fd=fd)  # type: ignore[arg-type]
        for item in items:
            lines.refused(item) if isinstance(item, Refused) else lines.request(item)
        lines.close()
        return (tmp_path / "out").read_bytes()
    finally:
        os.close(fd)


def test_one_json_object_a_request(tmp_path: Path) -> None:
    """The line carries the identity of the row and its figures, the user's own word does not appear."""
    called, refused = _lines(tmp_path, "json", [EVENT, REFUSED]).splitlines()
    line = msgspec.json.decode(called)
    assert (line["epoch"], line["call"]) == ("ab" * 16, 7)
    assert line["time"] == "2026-11-22T02:49:01.123Z"
    assert (line["prompt_tokens"], line["completion_tokens"], line["cost_nanos"]) == (12, 34, 1_234_000)
    assert (line["tenant"], line["key_id"], line["termination"]) == ("acme", "key_1", "complete")
    assert "someone" not in called.decode()
    assert msgspec.json.decode(refused)["refusal"] == "invalid_api_key"


def test_summary_for_people(tmp_path: Path) -> None:
    """One line with tenant, model, status, tokens, cost and time; a client's strings cannot steer the terminal."""
    hostile = msgspec.structs.replace(EVENT, model="\x1b[2Jm", price_version="", source="estimated")
    hostile = msgspec.structs.replace(hostile, termination="client_gone")
    first, second, third = _lines(tmp_path, "summary", [EVENT, hostile, REFUSED]).decode().splitlines()
    assert "acme" in first
    assert "demo-small" in first
    assert "200  12+34 tokens  $0.001234  46 ms" in first
    counted = msgspec.structs.replace(EVENT, source="counted", lower_bound=True)
    assert "200  12+≥34 tokens (counted)  " in _lines(tmp_path, "summary", [counted]).decode()
    assert json.loads(_lines(tmp_path, "json", [counted]))["lower_bound"] is True
    assert "\x1b" not in second
    assert "(estimated)  unpriced" in second
    assert second.endswith("client_gone")
    assert "401  refused: invalid_api_key" in third


def test_off_writes_nothing(tmp_path: Path) -> None:
    """With the log off nothing is kept and nothing is written."""
    assert _lines(tmp_path, "off", [EVENT, REFUSED]) == b""


def test_a_reader_that_stands_still_costs_no_time_and_loses_only_lines(pipe: tuple[int, int], tmp_path: Path) -> None:
    """A full pipe never blocks `flush`; what waits is bounded and counted, and whole lines come out when it is read."""
    reader, writer = pipe
    counters = Counters(tmp_path / "metrics", 0)
    lines = Lines("json", fd=writer, counters=counters)
    for _ in range(bounds.LOG_LINES_MAX + 5000):
        lines.request(EVENT)
    lines.flush()
    lines.flush()
    assert lines.dropped == counters.total("weir_log_lines_dropped_total") == 5000
    counters.close()
    out = bytearray()
    os.set_blocking(reader, False)
    while True:
        lines.flush()
        try:
            out += os.read(reader, 65536)
        except BlockingIOError:
            break
    lines.close()
    got = bytes(out).splitlines()
    assert len(got) == bounds.LOG_LINES_MAX
    assert {bytes(line) for line in got} == {got[0]}
    assert msgspec.json.decode(got[0])["call"] == 7


def test_lines_of_several_writers_never_mix(pipe: tuple[int, int]) -> None:
    """Two processes on one pipe: each block is a whole number of lines and at most PIPE_BUF bytes."""
    reader, writer = pipe
    out = bytearray()

    def read() -> None:
        while not out.endswith(b"\0"):
            out.extend(os.read(reader, 1000))

    thread = threading.Thread(target=read)
    thread.start()
    writers = [Lines("json", epoch=bytes([number]) * 16, fd=writer) for number in (1, 2)]
    try:
        for _ in range(300):
            for one in writers:
                for _ in range(20):
                    one.request(EVENT)
                one.flush()
        for one in writers:
            while one._ready or one._waiting:
                one.flush()
            one.close()
    finally:
        os.write(writer, b"\0")
        thread.join(120)
    assert not thread.is_alive()
    decoded = [msgspec.json.decode(line) for line in bytes(out).rstrip(b"\0").splitlines()]
    assert len(decoded) == 2 * 300 * 20
    assert {line["epoch"] for line in decoded} == {"01" * 16, "02" * 16}


@pytest.mark.parametrize("long_ones", [(3,), (0, 1), (29,), range(30), ()])
def test_a_block_is_whole_lines(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, long_ones: Sequence[int]
) -> None:
    """A write ends where a line ends and is no longer than a pipe takes at once, but for a line that is longer."""
    lines = Lines("json", fd=pipe[1])
    written: list[bytes] = []
    monkeypatch.setattr(lines._sink, "write", lambda block: written.append(block) or True)
    for number in range(30):
        model = "m" * 5000 if number in long_ones else "m"
        lines.refused(msgspec.structs.replace(REFUSED, model=model, request_id=str(number)))
    lines.close()
    assert [json.loads(line)["request_id"] for line in b"".join(written).splitlines()] == [str(n) for n in range(30)]
    for block in written:
        assert block.endswith(b"\n")
        assert len(block) <= select.PIPE_BUF or block.count(b"\n") == 1
    assert len(written) <= 2 * len(long_ones) + 2


def test_facts_of_a_process(pipe: tuple[int, int]) -> None:
    """A fact is one JSON object with time, level and part; the summary form is one plain line."""
    reader, writer = pipe
    Log("keeper", fd=writer).warning("the journal grows", bytes=12)
    Log("keeper", "summary", fd=writer).info("policy\npublished", version="abc")
    first, second = os.read(reader, 4096).decode().splitlines()
    line = msgspec.json.decode(first)
    assert (line["level"], line["part"], line["message"], line["bytes"]) == (
        "warning",
        "keeper",
        "the journal grows",
        12,
    )
    assert second == "keeper: policy?published version=abc"


def test_timestamp_carries_milliseconds() -> None:
    """Milliseconds are cut, never rounded up into the next second."""
    assert timestamp(1_795_315_741_999_999) == "2026-11-22T02:49:01.999Z"
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"


def test_a_call_is_counted_once_in_each_family(tmp_path: Path) -> None:
    """Two equal calls double every count; a refused one counts by its reason; an unsent one has no upstream."""
    counters = Counters(tmp_path / "metrics", 0)
    try:
        metrics = CallMetrics(counters)
        metrics.record(EVENT)
        metrics.record(EVENT)
        metrics.record(msgspec.structs.replace(EVENT, upstream="", price_version="", cost_nanos=0, first_us=0))
        metrics.refuse("bad_json")
        total = counters.total
        assert total("weir_requests_total", "chat.completions", "200", "complete") == 3
        assert total("weir_tokens_total", "acme", "demo-small", "completion") == 3 * 34
        assert total("weir_tokens_total", "acme", "demo-small", "cached") == 3 * 2
        assert total("weir_cost_nanodollars_total", "acme", "demo-small") == 2 * 1_234_000
        assert total("weir_unpriced_calls_total", "demo-small") == 1
        assert total("weir_upstream_requests_total", "demo", "demo-small", "200") == 2
        assert total("weir_relayed_bytes_total") == 2700
        assert total("weir_refusals_total", "bad_json") == 1
        first_byte = counters.series("weir_first_byte_seconds", "demo", "demo-small")
        assert sum(counters.cells[first_byte : first_byte + 16]) == 2
    finally:
        counters.close()


def test_what_libraries_log_becomes_lines_too(tmp_path: Path) -> None:
    """Standard logging goes where the process's own log goes, one JSON object a record, tracebacks included."""
    before = logging.getLogger().handlers[:], logging.getLogger().level
    path = tmp_path / "lines"
    with open(path, "wb") as file:
        try:
            Log("worker 3", "json", fd=file.fileno()).take_over()
            logging.getLogger("some.library").warning("odd: %s", "x")
            try:
                raise ValueError("within")
            except ValueError:
                logging.getLogger("weir.front").exception("failed")
        finally:
            logging.getLogger().handlers[:], level = before[0], before[1]
            logging.getLogger().setLevel(level)
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["level"], first["part"], first["logger"], first["message"]) == (
        "warning",
        "worker 3",
        "some.library",
        "odd: x",
    )
    assert second["level"] == "error"
    assert "ValueError: within" in second["exception"]
