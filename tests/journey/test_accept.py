"""Step 1: what may not pass is refused early, in the dialect's own error, and reaches no upstream."""

from __future__ import annotations

import json
import re
import socket
from itertools import islice
from typing import Any

import pytest

from proxy.house import request_ids
from tests.journey.conftest import House, chat, parse, read_all
from tests.world.gateway import wait_for

PATHS = [
    "/v1/chat/completions/",
    "/v1/chat/completions?x=1",
    "/v1//chat/completions",
    "/v1/../v1/chat/completions",
    "/v1/%63hat/completions",
    "/v1/chat/completions;x",
    "/v1/chat%2fcompletions",
    "/V1/chat/completions",
    "/v1/chat/completions%00",
    "/admin",
    "/",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_match_to_the_byte(house: House, path: str) -> None:
    """Nothing is decoded, normalised or cut off: another spelling is another path, and there is none."""
    status, headers, body, request_id = house.post(chat(), path=path)
    assert (status, json.loads(body)["error"]["code"]) == (404, "unknown_endpoint")
    assert headers["x-weir-error"] == "client"
    assert not house.asked(request_id)


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/healthz", "GET")]
)
def test_other_methods_are_told_which_would_do(house: House, path: str, allowed: str) -> None:
    """405 names the method; after a HEAD there is no content, so that the next answer is taken for the next one's."""
    head = f"HEAD {path} HTTP/1.1\r\nhost: weir\r\n\r\n".encode()
    put = f"PUT {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n".encode()
    first, _, rest = house.raw(head + put).partition(b"\r\n\r\n")
    assert (first.split()[1], f"allow: {allowed}".encode() in first) == (b"405", True), first
    status, headers, body = parse(rest)
    assert (status, headers["allow"], json.loads(body)["error"]["code"]) == (405, allowed, "method_not_allowed")


HEADERS: list[tuple[bytes, int]] = [
    (b"authorization: Bearer other\r\n", 400),
    (b"x-api-key: other\r\n", 400),
    (b"content-type: text/plain\r\n", 400),
    (b"host: other\r\n", 400),
    (b"transfer-encoding: chunked\r\n", 400),
    (b"transfer-encoding: gzip, chunked\r\n", 400),
    (b"content-length: 5\r\n", 400),
    (b"content-encoding: gzip\r\n", 415),
    (b"expect: something\r\n", 417),
    (b"x-tenant-id: other-tenant\r\n", 403),
    (b"bad name: x\r\n", 400),
    (b" folded: x\r\n", 400),
]


@pytest.mark.parametrize(("line", "status"), HEADERS, ids=lambda v: v.decode().strip() if isinstance(v, bytes) else "")
def test_headers_that_could_mean_two_things_are_refused(house: House, line: bytes, status: int) -> None:
    """A doubled or odd header is never resolved by taste: the request is refused and the upstream does not see it."""
    body = json.dumps(chat()).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: hdr-%d\r\nconnection: close\r\n"
    ) % (house.weir.key.encode(), len(body), abs(hash(line)))
    answer = house.raw(head + line + b"\r\n" + body)
    assert parse(answer)[0] == status, answer
    assert not house.asked(f"hdr-{abs(hash(line))}")


BODIES: list[tuple[bytes, int, str | None]] = [
    (b"", 400, "bad_json"),
    (b"[]", 400, "bad_json"),
    (b'{"model":"m1","messages":[}', 400, "bad_json"),
    (b'{"model":"m1","messages":[],"x":NaN}', 400, "bad_json"),
    (b'\xef\xbb\xbf{"model":"m1","messages":[]}', 400, "bad_json"),
    (b'{"model":"m1","messages":[],"x":"\xff"}', 400, "bad_json"),
    (b'{"model":"m1","messages":' + b"[" * 200 + b"]" * 200 + b"}", 400, "bad_json"),
    (b'{"model":"m1","model":"m2","messages":[]}', 400, "duplicate_key"),
    (b'{"model":"m1","mod\\u0065l":"m2","messages":[]}', 400, "duplicate_key"),
    (b'{"model":"m1","Model":"m2","messages":[]}', 400, "duplicate_key"),
    (b'{"model":"m1","messages":[],"stream":"yes"}', 400, "bad_value"),
    (b'{"model":7,"messages":[]}', 400, "bad_value"),
    (b'{"messages":[]}', 400, "bad_value"),
    (b'{"model":"m1","messages":[],"n":1000}', 400, "bad_value"),
    (b'{"model":"m1","messages":[],"max_tokens":-1}', 400, "bad_value"),
]


@pytest.mark.parametrize(("body", "status", "code"), BODIES, ids=lambda v: str(v)[:30])
def test_bodies_are_judged_whole(house: House, body: bytes, status: int, code: str) -> None:
    """What is not strict JSON, or says a governed thing twice, is refused: the upstream must read what was judged."""
    answered, _, payload, request_id = house.post(body)
    assert (answered, json.loads(payload)["error"]["code"]) == (status, code)
    assert not house.asked(request_id)


def test_body_and_head_have_bounds(house: House) -> None:
    """A body that says it is too large is refused before it is read; endless heads and lines are refused too."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: 99999999999\r\nexpect: 100-continue\r\n\r\n"
    )
    answer = house.raw(head % house.weir.key.encode())
    assert parse(answer)[0] == 413
    assert b"100 Continue" not in answer
    long_line = house.raw(b"GET /v1/models?" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: weir\r\n\r\n")
    assert parse(long_line)[0] == 431
    long_head = b"GET /v1/models HTTP/1.1\r\nhost: weir\r\n" + b"a: " + b"x" * 20_000 + b"\r\n\r\n"
    assert parse(house.raw(long_head))[0] == 431


MALFORMED = [
    b"NOT HTTP\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /v1/models HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer wk_live_secret\x7f\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: weir\r\nauthorization : Bearer wk_live_secret\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nhost: weir\r\ncontent-length: -1\r\n\r\n",
]


@pytest.mark.parametrize("request_", MALFORMED, ids=lambda data: repr(data[:24]))
def test_what_is_not_http_is_refused_in_weirs_own_words(house: House, request_: bytes) -> None:
    """Even a request that cannot be parsed gets the dialect's error, and nothing of it is quoted: it may hold a key."""
    status, headers, body = parse(house.raw(request_))
    assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request")
    assert (headers["x-weir-error"], headers["x-should-retry"]) == ("client", "false")
    assert headers["connection"] == "close"
    assert b"secret" not in body


def test_continue_only_for_a_good_key(house: House) -> None:
    """`100 Continue` follows identify: a stranger is refused before it sends a body, a known key is told to go on."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer {}\r\nconnection: close\r\n"
        "content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n"
    )
    body = json.dumps(chat()).encode()
    answer = house.raw(head.format("wk_live_nobody", len(body)).encode())
    assert answer.startswith(b"HTTP/1.1 401")
    with socket.create_connection(("127.0.0.1", house.weir.port), timeout=120) as connection:
        connection.sendall(head.format(house.weir.key, len(body)).encode())
        interim = connection.recv(65536)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert parse(read_all(connection))[0] == 200


def test_slow_bodies_in_small_pieces(house: House) -> None:
    """A chunked body in one-byte chunks is read whole before an upstream is asked."""
    body = json.dumps(chat()).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\nconnection: close\r\n"
        b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    ) % house.weir.key.encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    assert parse(house.raw(head + chunks + b"0\r\n\r\n"))[0] == 200


def test_a_client_gone_before_its_body_leaves_no_row(house: House) -> None:
    """Half a body and a closed connection: nothing was opened, so there is no row and no upstream call."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\nx-request-id: half-body\r\n"
        b"content-type: application/json\r\ncontent-length: 500\r\n\r\n{"
    ) % house.weir.key.encode()
    house.raw(head, half_close=True, seconds=3)
    house.post(chat())
    assert not house.rows("half-body")
    assert not house.asked("half-body")


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.soak)])
def test_pipelined_requests_are_answered_in_order(house: House, count: int) -> None:
    """Requests sent ahead are served one after the other, each metered once."""
    one: list[bytes] = []
    for number in range(count):
        body = json.dumps(chat({"tokens": 1, "prompt_tokens": number})).encode()
        one.append(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer %b\r\n%b"
            b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: pipe-%d\r\n\r\n%b"
            % (
                house.weir.key.encode(),
                b"connection: close\r\n" if number == count - 1 else b"",
                len(body),
                count + number,
                body,
            )
        )
    answer = house.raw(b"".join(one))
    names = [f"pipe-{count + number}" for number in range(count)]
    order = [answer.index(b"x-request-id: %b\r\n" % name.encode()) for name in names]
    assert order == sorted(order)

    def metered() -> dict[str, int]:
        rows = [row for row in house.weir.rows() if row["request_id"] in names]
        return {row["request_id"]: row["prompt_tokens"] for row in rows} if len(rows) == count else {}

    assert wait_for("a row for each", metered) == {name: number for number, name in enumerate(names)}


def test_http_1_0_gets_a_plain_answer(house: House) -> None:
    """A client of HTTP/1.0 gets no chunks: the stream ends with the connection."""
    body = json.dumps({**chat({"tokens": 2}), "stream": True}).encode()
    answer = house.raw(
        b"POST /v1/chat/completions HTTP/1.0\r\nhost: weir\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (house.weir.key.encode(), len(body), body)
    )
    head, _, payload = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert payload.endswith(b"data: [DONE]\n\n")


def test_nothing_of_the_client_leaks_upstream(house: House) -> None:
    """Only the allowed headers go upstream, with Weir's own credential in place of the client's."""
    _, _, _, request_id = house.post(
        chat({"keep": True}),
        x_forwarded_for="1.2.3.4",
        cookie="a=b",
        openai_organization="org-x",
        user_agent="spy/1",
    )
    event: dict[str, Any] = house.asked(request_id)[0]
    names = {name.lower(): value for name, value in event["headers"]}
    assert names["authorization"] == "Bearer sk-upstream-secret"
    assert not {"x-forwarded-for", "cookie", "openai-organization"} & set(names)
    assert names["user-agent"].startswith("weir/")
    assert names["accept-encoding"] == "identity"


def test_nothing_of_the_upstream_leaks_to_the_client(house: House) -> None:
    """The upstream's account headers, limits and request id stay behind; Weir's own request id goes out."""
    leaks = [["x-ratelimit-limit-requests", "1"], ["openai-organization", "org-secret"], ["set-cookie", "a=b"]]
    _, headers, _, request_id = house.post(chat({"headers": leaks}))
    assert headers["x-request-id"] == request_id
    assert not {"openai-organization", "set-cookie", "server"} & set(headers)
    assert headers.get("x-ratelimit-limit-requests") != "1"


def test_ids_that_weir_makes_are_no_two_alike() -> None:
    """Two workers' first ten thousand: each as long as the others, and none twice."""
    made = [identifier for ids in (request_ids(), request_ids()) for identifier in islice(ids, 10_000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("req_[0-9a-f]{24}", identifier) for identifier in made)
