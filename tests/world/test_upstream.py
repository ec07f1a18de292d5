"""The scripted upstream does what its scripts say, and its ledger says what it did."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.world.ledger import Ledger, read_ledger
from tests.world.process import UpstreamProcess
from tests.world.upstream import Upstream


async def call(port: int, script: dict[str, Any] | None, *, read: int = -1, **body: Any) -> bytes:
    """Sends one chat request on a connection of its own and returns the raw answer (`read` bytes of it, or all)."""
    content = ("@" + json.dumps(script) if script else "") + "one two three"
    asked = {"model": "m", "messages": [{"role": "user", "content": content}], **body}
    data = json.dumps(asked).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-ID: r-1\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    try:
        if read >= 0:
            return await reader.readexactly(read)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b'"owned_by": "mock"' not in answer and b'"owned_by":"mock"' not in answer:
            data = await reader.read(65536)
            if not data:
                return answer
            answer += data
        return answer[: answer.rindex(b"HTTP/1.1 200")]
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def run(script: dict[str, Any] | None, *, read: int = -1, **body: Any) -> tuple[bytes, dict[str, Any]]:
    """(raw answer, the ledger's end of it)."""

    async def go() -> tuple[bytes, dict[str, Any]]:
        async with Upstream() as upstream:
            answer = await call(upstream.port, script, read=read, **body)
            async with asyncio.timeout(120):
                while not upstream.ends():
                    await asyncio.sleep(0.005)
            assert upstream.requests[0].header("X-REQUEST-ID") == "r-1"
            return answer, upstream.ends()[0]

    try:
        return asyncio.run(go())
    except ConnectionResetError:
        raise AssertionError("reset outside a reset test") from None


def data_of(answer: bytes) -> bytes:
    """The payload of a chunked answer."""
    rest = answer.partition(b"\r\n\r\n")[2]
    payload = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        payload += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return payload


def test_a_whole_answer_names_its_tokens() -> None:
    """Aim: body, usage and ledger of a whole answer agree."""
    answer, end = run({"tokens": 5})
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["usage"]["prompt_tokens"] == end["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == end["completion_tokens"] == 5
    assert (end["how"], end["frames"], end["usage_sent"]) == ("complete", 1, True)
    assert b"x-request-id: up-1" in answer


@pytest.mark.parametrize("asked", [True, False])
def test_usage_frame_only_when_asked(asked: bool) -> None:
    """Aim: the usage frame and `usage: null` appear exactly when include_usage asks for them."""
    answer, end = run({"tokens": 4}, stream=True, stream_options={"include_usage": asked})
    payload = data_of(answer)
    assert payload.count(b"data: ") == end["frames"] == (6 if asked else 5)
    assert len(payload) == end["bytes"]
    assert payload.count(b'"usage":null') == (4 if asked else 0)
    assert end["usage_sent"] is asked
    assert payload.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("script", "how", "frames"),
    [
        ({"tokens": 9, "close_at": 3}, "closed", 3),
        ({"tokens": 9, "close_at": 0}, "closed", 0),
        ({"tokens": 2, "close_at": 99}, "closed", 3),
        ({"tokens": 9, "close_at": -1}, "closed", 0),
    ],
)
def test_cuts_happen_where_they_are_asked(script: dict[str, Any], how: str, frames: int) -> None:
    """Aim: a stream is cut after exactly so many frames, and never terminated."""
    answer, end = run(script, stream=True)
    assert (end["how"], end["frames"]) == (how, frames)
    assert answer.count(b"data: ") == frames
    assert not answer.endswith(b"0\r\n\r\n")


def test_reset_is_a_reset() -> None:
    """Aim: `reset_at` is seen as ECONNRESET, not as an end of file."""

    async def go() -> dict[str, Any]:
        async with Upstream() as upstream:
            with pytest.raises(ConnectionResetError):
                await call(upstream.port, {"reset_at": 2}, stream=True)
            return upstream.ends()[0]

    assert asyncio.run(go())["how"] == "reset"


@pytest.mark.parametrize("script", [{"stall_at": 2}, {"endless": True, "delay_ms": 1}, {"delay_ms": 60, "tokens": 99}])
def test_a_client_that_goes_is_noticed(script: dict[str, Any]) -> None:
    """Aim: stalls, endless streams and pauses end when the client has gone, and the ledger says so."""
    _, end = run(script, read=300, stream=True)
    assert end["how"] == "client_gone"


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ({"usage": "negative"}, b'"completion_tokens":-5'),
        ({"usage": "float"}, b'"completion_tokens":7.5'),
        ({"usage": "huge"}, b'"completion_tokens":%d' % 2**70),
        ({"usage": "last_content", "tokens": 2}, b'"finish_reason":"stop"}],"usage":{"prompt_tokens":3'),
        ({"usage": "cumulative", "tokens": 2}, b'"completion_tokens":1'),
        ({"usage": "always", "spaced": True}, b'"usage": {"prompt_tokens": 3'),
        ({"usage": {"total": 1}}, b'"usage":{"total":1}'),
        ({"line_end": "crlf"}, b"\r\n\r\ndata: "),
        ({"bom": True}, b"\xef\xbb\xbfdata: "),
        ({"comments": True}, b": ping\n\ndata: "),
        ({"error_at": 1}, b'data: {"error":'),
        ({"first_empty": True}, b'"choices":[],"prompt_filter_results"'),
        ({"line_bytes": 100_000}, b"x" * 100_000),
        ({"word": "a\nb", "split": [3, 1]}, b"a\\nb"),
        ({"drip": True, "tokens": 1}, b"[DONE]"),
        ({"model": "other"}, b'"model":"other"'),
    ],
)
def test_odd_streams(script: dict[str, Any], part: bytes) -> None:
    """Aim: each odd stream really carries its oddity, and its payload is what the ledger counts."""
    answer, end = run(script, stream=True, stream_options={"include_usage": True})
    payload = data_of(answer)
    assert part in payload
    assert end["bytes"] == len(payload)
    assert end["frames"] == payload.count(b"data: ")


def test_odd_heads_and_framings() -> None:
    """Aim: early hints, HTTP/1.0, trailers, failures, codings, short bodies and huge headers look as they should."""
    answer, _ = run({"early": [103]})
    assert answer.startswith(b"HTTP/1.1 103 ")
    assert b"HTTP/1.1 200 OK" in answer
    answer, _ = run({"framing": "http10"}, stream=True)
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"data: [DONE]\n\n")
    answer, _ = run({"trailers": {"x-sum": "1"}}, stream=True)
    assert answer.endswith(b"0\r\nx-sum: 1\r\n\r\n")
    answer, end = run({"status": 429, "headers": [["retry-after", "7"]]})
    assert b"429 Too Many Requests" in answer
    assert b"retry-after: 7" in answer
    assert (end["status"], end["completion_tokens"]) == (429, 0)
    answer, _ = run({"encoding": "gzip"})
    assert b'"usage"' in gzip.decompress(answer.partition(b"\r\n\r\n")[2])
    answer, end = run({"short": 10})
    assert end["how"] == "closed"
    answer, _ = run({"header_bytes": 70_000})
    assert b"h" * 70_000 in answer
    answer, _ = run({"tokns": 1})
    assert b"400 Bad Request" in answer
    assert b"bad script" in answer


def test_failing_first_counts_by_name() -> None:
    """Aim: `fail_first` fails the first requests of its name and no later one."""

    async def go() -> list[int]:
        async with Upstream() as upstream:
            return [int((await call(upstream.port, {"fail_first": ["a", 2, 500]}))[9:12]) for _ in range(3)]

    assert asyncio.run(go()) == [500, 500, 200]


def test_a_process_keeps_its_ledger_when_it_is_killed(tmp_path: Path) -> None:
    """Aim: SIGKILL loses no event, and the next life goes on counting."""
    path = tmp_path / "ledger"
    upstream = UpstreamProcess(path)
    with upstream:
        assert asyncio.run(call(upstream.port, None)).startswith(b"HTTP/1.1 200")
        upstream.process.kill()
        upstream.process.wait()
    kinds = [event["event"] for event in read_ledger(path)]
    assert kinds[:2] == ["request", "end"]
    ledger = Ledger(path)
    assert ledger.n == max(event["n"] for event in read_ledger(path)) > 0
    ledger.close()
