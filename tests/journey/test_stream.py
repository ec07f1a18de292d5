"""Step 6: bytes through, frame for frame; and when something breaks, no clean ending and an honest row."""

from __future__ import annotations

import json
import socket
import struct
import uuid
from typing import Any

import pytest

from tests.journey.conftest import House, chat, parse
from tests.world.gateway import wait_for


def stream(house: House, script: dict[str, Any], **more: Any) -> tuple[int, bytes, bool, str]:
    """(status, payload, whether the stream ended with its terminating chunk, request id)."""
    body = json.dumps({**chat(script), "stream": True, **more}).encode()
    request_id = f"stream-{uuid.uuid4().hex}"
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n"
    ) % (house.weir.key.encode(), len(body), request_id.encode())
    answer = house.raw(head + body)
    status, _, payload = parse(answer)
    return status, payload, answer.endswith(b"\r\n0\r\n\r\n"), request_id


WHOLE = [
    {"tokens": 5},
    {"tokens": 5, "usage": "always"},
    {"tokens": 5, "usage": "always", "spaced": True},
    {"tokens": 5, "usage": "always", "line_end": "crlf"},
    {"tokens": 5, "usage": "always", "line_end": "cr"},
    {"tokens": 5, "usage": "always", "bom": True},
    {"tokens": 5, "usage": "always", "comments": True},
    {"tokens": 5, "usage": "always", "first_empty": True},
    {"tokens": 5, "usage": "always", "drip": True},
    {"tokens": 5, "usage": "always", "split": [7, 3, 50]},
    {"tokens": 5, "usage": "always", "trailers": {"x-trailer": "1"}},
    {"tokens": 5, "usage": "always", "early": [103, 100]},
    {"tokens": 5, "usage": "always", "framing": "close"},
    {"tokens": 5, "usage": "always", "framing": "http10"},
    {"tokens": 5, "usage": "always", "close_after": True},
    {"tokens": 5, "usage": "last_content", "done": False},
    {"tokens": 5, "usage": "twice"},
    {"tokens": 5, "usage": "cumulative"},
]


@pytest.mark.parametrize("script", WHOLE, ids=lambda s: json.dumps(s)[12:])
@pytest.mark.parametrize("asked", [True, False])
def test_a_whole_stream(house: House, script: dict[str, Any], asked: bool) -> None:
    """In whatever framing it comes, the client gets the payload and a clean end, and the row has the true tokens."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    status, payload, clean, request_id = stream(house, {**script, "prompt_tokens": 9}, **options)
    assert (status, clean) == (200, True)
    text = payload.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    frames = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    contents = [json.loads(frame) for frame in frames if frame != "[DONE]"]
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in contents if c["choices"])
    assert said == "".join(f"w{n} " for n in range(5))
    usage_frames = [c for c in contents if not c["choices"] and isinstance(c.get("usage"), dict)]
    if not asked:
        assert not usage_frames
    row = house.row(request_id)
    assert (row["prompt_tokens"], row["completion_tokens"], row["source"]) == (9, 5, "provider")
    assert (row["termination"], row["relayed_bytes"]) == ("complete", len(payload))


LIES: list[Any] = ["none", "negative", "float", "huge", "string", "null"]


@pytest.mark.parametrize("usage", LIES)
def test_usage_that_is_none_or_nonsense_is_estimated(house: House, usage: str) -> None:
    """Figures that cannot be are not believed: the row is an estimate and says so."""
    _, _, clean, request_id = stream(house, {"tokens": 5, "usage": usage, "prompt_tokens": 9})
    row = house.row(request_id)
    assert (clean, row["source"], row["termination"]) == (True, "estimated", "complete")
    assert 0 < row["completion_tokens"] <= 15


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"tokens": 9, "reset_at": 4}, "upstream_error"),
    ({"tokens": 9, "close_at": 4}, "upstream_error"),
    ({"tokens": 9, "stall_at": 4}, "timeout"),
    ({"endless": True, "delay_ms": 20}, "timeout"),
]


@pytest.mark.parametrize(("script", "termination"), BROKEN, ids=lambda v: json.dumps(v)[:30])
def test_a_stream_that_breaks(house: House, script: dict[str, Any], termination: str) -> None:
    """After the first byte nothing is refused or retried: the connection ends without a clean end, the row says why."""
    status, payload, clean, request_id = stream(house, script, model="brief")
    assert (status, clean) == (200, False)
    row = house.row(request_id)
    assert row["termination"] == termination
    assert payload.count(b"\n\n") <= row["relayed_frames"]
    assert len(payload) <= row["relayed_bytes"]
    assert len(house.asked(request_id)) == 1


def test_a_truncated_answer_is_not_whole(house: House) -> None:
    """A JSON answer shorter than its Content-Length cannot be taken for a whole one."""
    body = json.dumps(chat({"short": 10})).encode()
    answer = house.raw(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\nx-request-id: short-1\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (house.weir.key.encode(), len(body), body)
    )
    status, headers, payload = parse(answer)
    assert status == 200
    assert len(payload) < int(headers["content-length"])
    assert house.row("short-1")["termination"] == "upstream_error"


@pytest.mark.parametrize("when", ["before_first_byte", "mid_stream"])
def test_a_client_that_hangs_up(house: House, when: str) -> None:
    """A client that leaves is noticed at once: the upstream call is cancelled and the row holds what was relayed."""
    script = {"first_ms": 20_000, "tokens": 5} if when == "before_first_byte" else {"tokens": 4000, "delay_ms": 5}
    body = json.dumps({**chat(script), "stream": True}).encode()
    request_id = f"gone-{when}"
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\nx-request-id: %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
    ) % (house.weir.key.encode(), request_id.encode(), len(body))
    with socket.create_connection(("127.0.0.1", house.weir.port), timeout=120) as connection:
        connection.sendall(head + body)
        received = b""
        if when == "mid_stream":
            while received.count(b"\n\n") < 5:
                received += connection.recv(65536)
        else:
            wait_for("the upstream to be asked", lambda: house.asked(request_id))
        # A reset, as a killed process leaves it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    row = house.row(request_id)
    assert row["termination"] == "client_gone"
    assert row["relayed_frames"] >= received.count(b"\n\n")
    assert row["completion_tokens"] < 4000
    number = house.asked(request_id)[0]["n"]
    ended = wait_for(
        "the upstream to notice",
        lambda: [e for e in house.upstream.events() if e["event"] == "end" and e["n"] == number],
    )[0]
    assert ended["how"] == "client_gone"
    assert ended["bytes"] >= row["relayed_bytes"] >= 0


def test_a_client_that_closes_its_half_is_gone(house: House) -> None:
    """FIN after a whole request is a client that hung up: metered as such, the upstream cancelled."""
    body = json.dumps({**chat({"tokens": 4000, "delay_ms": 5}), "stream": True}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\nx-request-id: half-close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
    ) % (house.weir.key.encode(), len(body))
    with socket.create_connection(("127.0.0.1", house.weir.port), timeout=120) as connection:
        connection.sendall(head + body)
        connection.recv(100)
        connection.shutdown(socket.SHUT_WR)
        assert house.row("half-close")["termination"] == "client_gone"


def test_a_keep_alive_race_is_not_noticed(house: House) -> None:
    """An upstream that closes its idle connection costs the next call nothing."""
    for number in range(5):
        status, _, _, request_id = house.post(chat({"idle_close_ms": 1, "prompt_tokens": number}))
        assert status == 200
        assert house.row(request_id)["termination"] == "complete"


def test_only_the_model_and_usage_are_spliced(house: House) -> None:
    """The upstream reads the client's own bytes, but for the model's other name and the usage it is asked for."""
    body = (
        b'{ "model" : "renamed",\n "messages":[{"role":"user","content":"@{\\"keep\\":true} caf\\u00e9 \xc3\xa9"}],'
        b' "temperature": 1.0e0, "stream":true }'
    )
    status, _, _, request_id = house.post(body)
    assert status == 200
    sent = house.asked(request_id)[0]
    wanted = body.replace(b'"renamed"', b'"its-other-name"').replace(
        b"true }", b'true ,"stream_options":{"include_usage":true}}'
    )
    assert sent["body"].replace(" ", "") == wanted.decode().replace(" ", "")
    assert sent["body"].startswith('{ "model" : "its-other-name",\n "messages":[')
    row = house.row(request_id)
    assert (row["model"], row["model_served"]) == ("renamed", "its-other-name")


def test_a_price_is_charged_to_the_nanodollar(house: House) -> None:
    """Cost is integer nano-dollars of the provider's own tokens, cached ones at their own price."""
    script = {"tokens": 7, "prompt_tokens": 1000, "cached_tokens": 400}
    _, _, _, request_id = house.post({**chat(script), "model": "priced"})
    row = house.row(request_id)
    assert (row["cost_nanos"], row["price_version"]) == (600 * 2500 + 400 * 1250 + 7 * 10_000, "test-1")


def test_an_unknown_price_is_never_zero(house: House) -> None:
    """A model without a price is unpriced, and the row says so."""
    _, _, _, request_id = house.post(chat())
    assert house.row(request_id)["price_version"] == ""


@pytest.mark.parametrize("size", [20_000_000, pytest.param(100_000_000, marks=pytest.mark.soak)])
def test_a_huge_line_passes_unread(house: House, size: int) -> None:
    """A line far above what is parsed goes through whole, and no worker keeps it in memory."""
    workers = house.weir.processes("worker")
    before = {pid: resident_bytes(pid, "VmHWM") for pid in workers}
    status, payload, clean, request_id = stream(house, {"tokens": 1, "line_bytes": size})
    assert (status, clean) == (200, True)
    assert len(payload) > size
    assert house.row(request_id)["relayed_bytes"] == len(payload)
    assert max(resident_bytes(pid, "VmHWM") - before[pid] for pid in workers) < 8_000_000


def resident_bytes(pid: int, what: str = "VmRSS") -> int:
    """What the process has in memory now, or had at most (VmHWM)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what + ":"))


def test_concurrency_is_held_and_given_back(house: House) -> None:
    """A second call beside the only one allowed is refused; afterwards the next is admitted."""
    body = json.dumps({**chat({"endless": True, "delay_ms": 100}), "model": "single", "stream": True}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
    ) % (house.weir.key.encode(), len(body))
    with socket.create_connection(("127.0.0.1", house.weir.port), timeout=120) as connection:
        connection.sendall(head + body)
        assert connection.recv(12).startswith(b"HTTP/1.1 200")
        status, _, refused, _ = house.post({**chat(), "model": "single"})
        assert (status, json.loads(refused)["error"]["code"]) == (429, "concurrency_exceeded")
    wait_for("the place to be free", lambda: house.post({**chat(), "model": "single"})[0] == 200)


def test_tokens_are_settled_by_the_truth(house: House) -> None:
    """What is reserved and not used is returned: calls that reserve much and use little go on being admitted."""
    # 100 tokens a minute; each call reserves about half of them and uses three.
    for _ in range(6):
        body = {**chat({"tokens": 2, "prompt_tokens": 1}), "model": "narrow", "max_tokens": 30}
        status, headers, _, _ = house.post(body)
        assert status == 200, headers
    assert int(headers["x-ratelimit-limit-tokens"]) == 100
