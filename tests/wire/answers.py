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


ERROR = b'{"error": {"message": "slow down", "type": "requests", "param": null, "code": null}}'
ALL_FRAMES = b"".join(STREAM)
SOUND = b"\x00\xff" * 9


def said(status: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(lines) + b"\r\n" + body


def ok(*lines: bytes, body: bytes = b"") -> bytes:
    return said(b"200 OK", *lines, body=body)


def good(name: str, raw: bytes, payload: bytes, *, eof: bool = False, reusable: bool = True) -> Recorded:
    return Recorded(name, raw, _wire.COMPLETE, payload, eof, reusable, usage=b"prompt_tokens" in payload)


def error(name: str, raw: bytes, *, eof: bool = False) -> Recorded:
    return Recorded(name, raw, _wire.ANSWERED, None, eof, reusable=not eof)


def bad(name: str, raw: bytes) -> Recorded:
    return Recorded(name, raw, _wire.PROTOCOL, None)


EXTENDED = b'%x;a=b;c="d"\r\n%b\r\n0;z\r\n\r\n' % (len(DONE), DONE)
INTERIM = said(b"100 Continue") + said(b"103 Early Hints", b"link: </a>\r\ncontent-encoding: br\r\n", length(BODY * 2))

GOOD = [
    good("json by length", ok(JSON, length(BODY), body=BODY), BODY),
    good("json chunked", ok(JSON, CHUNKED, body=chunked([BODY[:7], BODY[7:]])), BODY),
    good("json until close", ok(JSON, body=BODY), BODY, eof=True, reusable=False),
    good("json, closing", ok(JSON, b"connection: close\r\n", length(BODY), body=BODY), BODY, reusable=False),
    good("json of HTTP/1.0", ok(JSON, length(BODY), body=BODY).replace(b"1.1", b"1.0", 1), BODY, reusable=False),
    good("stream chunked", ok(SSE, CHUNKED, body=chunked(STREAM)), ALL_FRAMES),
    good("stream in small chunks", ok(SSE, CHUNKED, body=chunked([bytes([b]) for b in ALL_FRAMES])), ALL_FRAMES),
    good("stream by length", ok(SSE, length(ALL_FRAMES), body=ALL_FRAMES), ALL_FRAMES),
    good("stream until close", ok(SSE, body=ALL_FRAMES), ALL_FRAMES, eof=True, reusable=False),
    good("chunk extensions", ok(SSE, CHUNKED, body=EXTENDED), DONE),
    good("trailers", ok(SSE, CHUNKED, body=chunked(STREAM, b"x-late: 1\r\ncontent-type: text/evil\r\n")), ALL_FRAMES),
    good("interim answers", INTERIM + ok(JSON, length(BODY), body=BODY), BODY),
    good("204", said(b"204 No Content", b"x-request-id: r1\r\n"), b""),
    good("empty body by length", ok(JSON, length(b"")), b""),
    good("empty body chunked", ok(JSON, CHUNKED, body=chunked([])), b""),
    good("201 is an answer too", said(b"201 Created", JSON, length(BODY), body=BODY), BODY),
    good("identity coding", ok(JSON, b"content-encoding: identity\r\n", length(BODY), body=BODY), BODY),
    good("bytes after the end", ok(JSON, length(BODY), body=BODY + OK), BODY, reusable=False),
    good("rubbish after the end", ok(JSON, CHUNKED, body=chunked([BODY]) + b"rubbish"), BODY, reusable=False),
    good("a body that is not JSON", ok(b"content-type: audio/mpeg\r\n", length(SOUND), body=SOUND), SOUND),
]

RETRY = b"retry-after: 7\r\nretry-after-ms: 6500\r\nx-should-retry: true\r\n"
GZIP = b"content-encoding: gzip\r\n"

REFUSED = [
    error("429", said(b"429 Too Many", RETRY, JSON, length(ERROR), body=ERROR)),
    error("500 chunked", said(b"500 No", JSON, CHUNKED, body=chunked([ERROR]))),
    error("503 until close", said(b"503 No", JSON, body=ERROR), eof=True),
    error("500 cut short", said(b"500 No", JSON, b"content-length: 999\r\n", body=ERROR), eof=True),
    error("500 coded", said(b"500 No", GZIP, length(ERROR), body=ERROR)),
    error("302", said(b"302 Found", b"location: http://elsewhere/\r\n", length(b""))),
    error("304", said(b"304 Not Modified", length(ERROR))),
    Recorded("coded", ok(JSON, GZIP, length(BODY), body=BODY), _wire.CODED, None),
    Recorded("coded twice", ok(b"Content-Encoding: br, gzip\r\n", CHUNKED, body=chunked([BODY])), _wire.CODED, None),
    bad("length and chunks", ok(JSON, length(BODY), CHUNKED, body=chunked([BODY]))),
    bad("chunks and length", ok(JSON, CHUNKED, length(BODY), body=chunked([BODY]))),
    bad("two lengths", ok(JSON, length(BODY), length(BODY + b" "), body=BODY)),
    bad("length not a number", ok(JSON, b"content-length: +5\r\n", body=b"hello")),
    bad("gzip and chunked", ok(JSON, b"transfer-encoding: gzip, chunked\r\n", body=chunked([BODY]))),
    bad("chunked twice", ok(JSON, CHUNKED, CHUNKED, body=chunked([BODY]))),
    bad("coding identity", ok(JSON, b"transfer-encoding: identity\r\n", body=BODY)),
    bad("chunk size not hex", ok(JSON, CHUNKED, body=b"xyz\r\n")),
    bad("chunk size negative", ok(JSON, CHUNKED, body=b"-5\r\nhello\r\n")),
    bad("chunk size huge", ok(JSON, CHUNKED, body=b"f" * 17 + b"\r\n")),
    bad("not HTTP", b"SSH-2.0-OpenSSH_9.2\r\n"),
    bad("bare line feeds", b"HTTP/1.1 200 OK\ncontent-length: 0\n\n"),
    bad("folded header", ok(b"content-type: text/plain;\r\n charset=x\r\n", length(b""))),
    bad("NUL in a header", ok(b"content-type: a\0b\r\n", length(b""))),
    bad("status 099", said(b"099 Odd", length(b""))),
    bad("switching protocols", said(b"101 S", b"connection: upgrade\r\nupgrade: x\r\n")),
    bad("interim answers without end", said(b"100 Continue") * (bounds.UPSTREAM_INFORMATIONAL_MAX + 1)),
    Recorded("closed before a byte", b"", _wire.LOST, None, True),
    Recorded("closed in the head", OK + JSON, _wire.LOST, None, True),
    Recorded("closed after the head", ok(JSON, length(BODY)), _wire.LOST, None, True),
]


def cut_short(name: str, raw: bytes, payload: bytes) -> Recorded:
    return Recorded(name, raw, _wire.LOST, payload, eof=True, whole=False)


BROKEN = b"%x\r\n%bXX" % (len(FRAMES[0]), FRAMES[0])

CUT_SHORT = [
    cut_short("short of its length", ok(JSON, length(BODY + b"more"), body=BODY), BODY),
    cut_short("closed between chunks", ok(SSE, CHUNKED, body=chunked(FRAMES)[:-5]), b"".join(FRAMES)),
    cut_short("closed in a chunk", ok(SSE, CHUNKED, body=b"fff\r\n" + FRAMES[0]), FRAMES[0]),
    Recorded("rubbish after a chunk", ok(SSE, CHUNKED, body=BROKEN), _wire.PROTOCOL, FRAMES[0], whole=False),
]

ALL = [*GOOD, *REFUSED, *CUT_SHORT]
