"""Answers of upstreams as they stand on the wire, each with what must become of it."""

from __future__ import annotations

import json
from typing import NamedTuple

from proxy import _wire, bounds
from tests.wire.rig import chunked

OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"content-type: application/json\r\n"
SSE = b"content-type: text/event-stream; charset=utf-8\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


def length(body: bytes) -> bytes:
    return b"content-length: %d\r\n" % len(body)


def frame(**fields: object) -> bytes:
    return b"data: " + json.dumps({"id": "c1", "model": "m-1", **fields}).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return frame(choices=[{"index": 0, "delta": {"content": text}}], usage=None)


BODY = json.dumps(
    {
        "id": "c1",
        "model": "m-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "A weir."}}],
        "usage": USAGE,
    }
).encode()
FRAMES = [delta("A "), delta("weir "), delta("stånds.")]
USAGE_FRAME = frame(choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"
STREAM = [*FRAMES, USAGE_FRAME, DONE]


class Recorded(NamedTuple):
    """`raw` is what the upstream sends; with `eof` it then closes. `payload` None: the client must get nothing."""

    name: str
    raw: bytes
    ending: int
    payload: bytes | None
    eof: bool = False
    reusable: bool = False
    usage: bool = False
    whole: bool = True  # the client can see that it has everything


C = _wire
ERROR = b'{"error": {"message": "slow down", "type": "requests", "param": null, "code": null}}'

GOOD = [
    Recorded("json by length", OK + JSON + length(BODY) + b"\r\n" + BODY, C.COMPLETE, BODY, False, True, True),
    Recorded(
        "json chunked", OK + JSON + CHUNKED + b"\r\n" + chunked([BODY[:7], BODY[7:]]), C.COMPLETE, BODY, False, True, True
    ),
    Recorded("json until close", OK + JSON + b"\r\n" + BODY, C.COMPLETE, BODY, True, False, True),
    Recorded("json, connection: close", OK + JSON + b"connection: close\r\n" + length(BODY) + b"\r\n" + BODY,
             C.COMPLETE, BODY, False, False, True),
    Recorded("json of HTTP/1.0", b"HTTP/1.0 200 OK\r\n" + JSON + length(BODY) + b"\r\n" + BODY,
             C.COMPLETE, BODY, False, False, True),
    Recorded("stream chunked", OK + SSE + CHUNKED + b"\r\n" + chunked(STREAM), C.COMPLETE, b"".join(STREAM), False, True, True),
    Recorded("stream in small chunks", OK + SSE + CHUNKED + b"\r\n" + chunked([bytes([b]) for b in b"".join(STREAM)]),
             C.COMPLETE, b"".join(STREAM), False, True, True),
    Recorded("stream by length", OK + SSE + length(b"".join(STREAM)) + b"\r\n" + b"".join(STREAM),
             C.COMPLETE, b"".join(STREAM), False, True, True),
    Recorded("stream until close", OK + SSE + b"\r\n" + b"".join(STREAM), C.COMPLETE, b"".join(STREAM), True, False, True),
    Recorded("chunk extensions", OK + SSE + CHUNKED + b"\r\n" + b"%x;a=b;c=\"d\"\r\n%b\r\n0;z\r\n\r\n" % (len(DONE), DONE),
             C.COMPLETE, DONE, False, True),
    Recorded("trailers", OK + SSE + CHUNKED + b"\r\n" + chunked(STREAM, b"x-late: 1\r\ncontent-type: text/evil\r\n"),
             C.COMPLETE, b"".join(STREAM), False, True, True),
    Recorded("interim answers", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\ncontent-encoding: br\r\ncontent-length: 5\r\n\r\n"
             + OK + JSON + length(BODY) + b"\r\n" + BODY, C.COMPLETE, BODY, False, True, True),
    Recorded("204", b"HTTP/1.1 204 No Content\r\nx-request-id: r1\r\n\r\n", C.COMPLETE, b"", False, True),
    Recorded("empty body by length", OK + JSON + b"content-length: 0\r\n\r\n", C.COMPLETE, b"", False, True),
    Recorded("empty body chunked", OK + JSON + CHUNKED + b"\r\n0\r\n\r\n", C.COMPLETE, b"", False, True),
    Recorded("201 is an answer too", b"HTTP/1.1 201 Created\r\n" + JSON + length(BODY) + b"\r\n" + BODY,
             C.COMPLETE, BODY, False, True, True),
    Recorded("identity coding", OK + JSON + b"content-encoding: identity\r\n" + length(BODY) + b"\r\n" + BODY,
             C.COMPLETE, BODY, False, True, True),
    Recorded("bytes after the end", OK + JSON + length(BODY) + b"\r\n" + BODY + b"HTTP/1.1 200 OK\r\n",
             C.COMPLETE, BODY, False, False, True),
    Recorded("rubbish after the end", OK + JSON + CHUNKED + b"\r\n" + chunked([BODY]) + b"rubbish",
             C.COMPLETE, BODY, False, False, True),
    Recorded("a body that is not JSON", OK + b"content-type: audio/mpeg\r\n" + length(b"\x00\xff" * 9) + b"\r\n" + b"\x00\xff" * 9,
             C.COMPLETE, b"\x00\xff" * 9, False, True),
]

REFUSED = [
    Recorded("429", b"HTTP/1.1 429 Too Many\r\nretry-after: 7\r\nretry-after-ms: 6500\r\nx-should-retry: true\r\n" + JSON
             + length(ERROR) + b"\r\n" + ERROR, C.ANSWERED, None, False, True),
    Recorded("500 chunked", b"HTTP/1.1 500 No\r\n" + JSON + CHUNKED + b"\r\n" + chunked([ERROR]), C.ANSWERED, None, False, True),
    Recorded("503 until close", b"HTTP/1.1 503 No\r\n" + JSON + b"\r\n" + ERROR, C.ANSWERED, None, True),
    Recorded("500 cut short", b"HTTP/1.1 500 No\r\n" + JSON + b"content-length: 999\r\n\r\n" + ERROR, C.ANSWERED, None, True),
    Recorded("500 coded", b"HTTP/1.1 500 No\r\ncontent-encoding: gzip\r\n" + length(ERROR) + b"\r\n" + ERROR, C.ANSWERED, None,
             False, True),
    Recorded("302", b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n", C.ANSWERED, None, False, True),
    Recorded("304", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", C.ANSWERED, None, False, True),
    Recorded("coded", OK + JSON + b"content-encoding: gzip\r\n" + length(BODY) + b"\r\n" + BODY, C.CODED, None),
    Recorded("coded twice", OK + JSON + b"Content-Encoding: br, gzip\r\n" + CHUNKED + b"\r\n" + chunked([BODY]), C.CODED, None),
    Recorded("length and chunks", OK + JSON + length(BODY) + CHUNKED + b"\r\n" + chunked([BODY]), C.PROTOCOL, None),
    Recorded("chunks and length", OK + JSON + CHUNKED + length(BODY) + b"\r\n" + chunked([BODY]), C.PROTOCOL, None),
    Recorded("two lengths", OK + JSON + length(BODY) + length(BODY + b" ") + b"\r\n" + BODY, C.PROTOCOL, None),
    Recorded("length not a number", OK + JSON + b"content-length: +5\r\n\r\nhello", C.PROTOCOL, None),
    Recorded("gzip and chunked", OK + JSON + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunked([BODY]), C.PROTOCOL, None),
    Recorded("chunked twice", OK + JSON + CHUNKED + CHUNKED + b"\r\n" + chunked([BODY]), C.PROTOCOL, None),
    Recorded("coding identity", OK + JSON + b"transfer-encoding: identity\r\n\r\n" + BODY, C.PROTOCOL, None),
    Recorded("chunk size not hex", OK + JSON + CHUNKED + b"\r\nxyz\r\n", C.PROTOCOL, None),
    Recorded("chunk size negative", OK + JSON + CHUNKED + b"\r\n-5\r\nhello\r\n", C.PROTOCOL, None),
    Recorded("chunk size huge", OK + JSON + CHUNKED + b"\r\nfffffffffffffffff\r\n", C.PROTOCOL, None),
    Recorded("not HTTP", b"SSH-2.0-OpenSSH_9.2\r\n", C.PROTOCOL, None),
    Recorded("bare line feeds", b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", C.PROTOCOL, None),
    Recorded("folded header", OK + b"content-type: text/plain;\r\n charset=x\r\ncontent-length: 0\r\n\r\n", C.PROTOCOL, None),
    Recorded("NUL in a header", OK + b"content-type: a\0b\r\ncontent-length: 0\r\n\r\n", C.PROTOCOL, None),
    Recorded("status 099", b"HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\n", C.PROTOCOL, None),
    Recorded("switching protocols", b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", C.PROTOCOL, None),
    Recorded("interim answers without end", b"HTTP/1.1 100 Continue\r\n\r\n" * (bounds.UPSTREAM_INFORMATIONAL_MAX + 1),
             C.PROTOCOL, None),
    Recorded("closed before a byte", b"", C.LOST, None, True),
    Recorded("closed in the head", OK + JSON, C.LOST, None, True),
    Recorded("closed after the head", OK + JSON + length(BODY) + b"\r\n", C.LOST, None, True),
]  # fmt: skip

CUT_SHORT = [
    Recorded("short of its length", OK + JSON + length(BODY + b"more") + b"\r\n" + BODY, C.LOST, BODY, True, whole=False),
    Recorded("closed between chunks", OK + SSE + CHUNKED + b"\r\n" + chunked(FRAMES)[:-5], C.LOST, b"".join(FRAMES), True,
             whole=False),
    Recorded("closed in a chunk", OK + SSE + CHUNKED + b"\r\n" + b"fff\r\n" + FRAMES[0], C.LOST, FRAMES[0], True, whole=False),
    Recorded("rubbish after a chunk", OK + SSE + CHUNKED + b"\r\n" + b"%x\r\n%bXX" % (len(FRAMES[0]), FRAMES[0]),
             C.PROTOCOL, FRAMES[0], whole=False),
]  # fmt: skip

ALL = [*GOOD, *REFUSED, *CUT_SHORT]
