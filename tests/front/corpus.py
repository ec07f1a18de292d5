"""Raw conversations that both fronts must answer alike: what is usual, what is odd, and what smugglers try.

A conversation is a list of steps; each step's bytes are sent when nothing moves any more after the step before. In them
<key> stands for a good key, and <mod> for a model name of the conversation's own, as long as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

MODEL = b"<mod>"
BODY = b'{"model":"<mod>","messages":[{"role":"user","content":"@{\\"tokens\\":2} one two"}]}'
STREAM = BODY[:-1] + b',"stream":true}'
LINE = b"POST /v1/chat/completions HTTP/1.1"
HOST, KEY, JSON = b"host: weir", b"authorization: Bearer <key>", b"content-type: application/json"
SIZE = str(len(BODY)).encode()
CHUNKED = b"transfer-encoding: chunked"

Steps = list[bytes]


def head(line: bytes, *lines: bytes) -> bytes:
    """A request's head."""
    return b"\r\n".join((line, *lines)) + b"\r\n\r\n"


def post(*more: bytes, body: bytes = BODY, line: bytes = LINE, length: bool = True) -> bytes:
    """A chat request with these header lines more."""
    size = (b"content-length: %d" % len(body),) if length else ()
    return head(line, HOST, KEY, JSON, *more, *size) + body


def get(path: bytes = b"/v1/models", *more: bytes) -> bytes:
    return head(b"GET %b HTTP/1.1" % path, HOST, KEY, *more)


def chunks(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


SMUGGLED = get(b"/v1/models/smuggled")
EXPECTING = b"expect: 100-continue"

USUAL = {
    "health": get(b"/healthz"),
    "ready": get(b"/readyz"),
    "models": get(),
    "one model": get(b"/v1/models/m1"),
    "no such model": get(b"/v1/models/"),
    "nowhere": get(b"/nowhere"),
    "root": get(b"/"),
    "wrong method": get(b"/v1/chat/completions"),
    "post to models": post(line=b"POST /v1/models HTTP/1.1"),
    "post to health": post(line=b"POST /healthz HTTP/1.1"),
    "chat": post(),
    "stream": post(body=STREAM),
    "completions": post(line=b"POST /v1/completions HTTP/1.1", body=b'{"model":"<mod>","prompt":"a b c"}'),
    "embeddings": post(line=b"POST /v1/embeddings HTTP/1.1", body=b'{"model":"<mod>","input":["a","b c"]}'),
    "tokenize": post(line=b"POST /v1/tokenize HTTP/1.1"),
    "wrong key": head(LINE, HOST, b"authorization: Bearer wk_live_wrong", JSON, b"content-length: 2") + b"{}",
    "no key": head(LINE, HOST, JSON, b"content-length: 2") + b"{}",
    "no key, no body": head(LINE, HOST, JSON, b"content-length: 50"),
    "no host": head(b"GET /v1/models HTTP/1.1", KEY),
    "nothing at all": head(b"GET /v1/models HTTP/1.1"),
    "no length": post(length=False, body=b""),
    "empty body": post(body=b""),
    "not json": post(body=b"nonsense"),
    "another type": head(LINE, HOST, KEY, b"content-type: text/plain", b"content-length: " + SIZE) + BODY,
    "type with a charset": head(
        LINE, HOST, KEY, b"Content-Type:  Application/JSON ; charset=utf-8 \t", b"content-length: " + SIZE
    )
    + BODY,
    "compressed": post(b"content-encoding: gzip"),
    "identity": post(b"content-encoding: identity"),
    "another tenant": post(b"x-tenant-id: other"),
    "own request id": post(b"x-request-id: mine-1"),
    "odd request id": post(b"x-request-id: a b"),
    "long request id": post(b"x-request-id: " + b"i" * 200),
    "too large": head(LINE, HOST, KEY, JSON, b"content-length: 99999999"),
    "far too large": head(LINE, HOST, KEY, JSON, b"content-length: 999999999999999"),
    "half a body": post(body=BODY)[:-9],
    "get with length 0": get(b"/v1/models", b"content-length: 0"),
    "close": post(b"connection: close"),
    "close a stream": post(b"Connection:CLOSE", body=STREAM),
    "keep": post(b"connection: Keep-Alive"),
    "close in blanks": post(b"connection: \t close \t"),
    "empty values": post(b"x-a:", b"x-b: ", b"x-c:\t", b"accept:", b"x-d:"),
    "empty before the key": head(b"GET /v1/models HTTP/1.1", HOST, b"x-a:", KEY),
    "empty key": head(b"GET /v1/models HTTP/1.1", HOST, b"authorization:"),
    "many lines": post(*(b"x-%d: %d" % (n, n) for n in range(110))),
    "long value": post(b"x-long: " + b"l" * 7000),
    "long path": get(b"/v1/models/" + b"m" * 500),
    "no blanks": head(LINE, b"host:weir", KEY, b"content-type:application/json", b"content-length:" + SIZE) + BODY,
    "shouted": head(LINE.upper().replace(b"/V1/CHAT/COMPLETIONS", b"/v1/chat/completions"), HOST.upper(), KEY)
    + SMUGGLED,
    "names in capitals": head(LINE, b"HOST: weir", b"AUTHORIZATION: Bearer <key>", b"CONTENT-LENGTH: " + SIZE) + BODY,
    "traced": post(b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"tracestate: a=b"),
    "other key headers": head(b"GET /v1/models HTTP/1.1", HOST, b"x-api-key: <key>", b"api-key: <key>"),
    "keys that disagree": get(b"/v1/models", b"x-api-key: other"),
    "one byte too much": post() + b"x",
    "a line end too much": post() + b"\r\n",
    "a request ahead": post() + get(),
}

PATHS = [
    b"//", b"///v1/models", b"/v1//models", b"/./v1/models", b"/v1/../v1/models", b"/v1/models/..", b"/v1/models/.",
    b"/V1/models", b"/v1/models/a:b", b"/v1:80/models", b"/:80", b"//weir/v1/models", b"/v1/models?",
    b"/v1/models?a=b", b"/v1/models#", b"/v1/models#a", b"/v1/models;a", b"/v1/%6dodels", b"/v1/models%00",
    b"/v1/models%", b"/v1/models/%2e", b"/v1/models\\", b"/v1/models|", b"/v1/models/{}", b"/v1/models/\xc3\xa9",
    b"/v1/models/\xff", b"/v1/mod\x00els", b"/v1/mod\tels", b"/v1/mod els", b"/v1/models/\x7f", b"/v1/models/\x01",
    b"/v1/models/<x>", b"/v1/models/\"x\"", b"/v1/models/a@b", b"/v1/models/a,b", b"/v1/models/~a", b"/v1/models/a+b",
    b"/v1/models/$a", b"", b"*", b"v1/models", b"http://weir/v1/models", b"HTTP://weir/v1/models",
    b"http://other/v1/models", b"http:/v1/models", b"http://weir", b"weir:80", b"http://user:pass@weir/v1/models",
    b"ftp://weir/v1/models", b"?", b"?a", b"#", b"/v1/models /x",
]  # fmt: skip
METHODS = [
    b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"CONNECT", b"PRI", b"QUERY", b"PROPFIND", b"M-SEARCH",
    b"FOO", b"G", b"GE", b"get", b"Get", b"GETX", b"GET\x00", b"G\xcbT", b"", b" GET", b"GET\t", b"GE T", b"SOURCE",
]  # fmt: skip
VERSIONS = [
    b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.10", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"http/1.1",
    b"HTTP/1.1 ", b"HTTP/1.1 x", b"HTTP /1.1", b"HTTPS/1.1", b"ICE/1.0", b"RTSP/1.0", b"HTTP/11", b"HTTP/1,1", b"",
]  # fmt: skip
LENGTHS = [
    b"+%b", b"-%b", b"%b,%b", b"%b, %b", b"%b %b", b"0x%b", b"0%b", b"00000000%b", b"0000000000000%b",
    b"000000000000000000%b", b"%b ", b"%b\t", b"\t%b", b"%b;", b"%b.0", b"%be0", b"%b\x00", b"\x00%b", b"%b\x0b",
    b"\x0c%b", b"%b_0", b"\xa0%b", b"%b, ", b",%b", b"%b\r", b"%b\n", b"", b" ", b"0", b"1", b"9",
    b"18446744073709551616", b"9223372036854775808", b"99999999999999999999999", b"999999999999999",
    b"9999999999999999", b"4294967296", b"4294967379", b"'%b'", b"nan",
]  # fmt: skip
CODINGS = [
    b"chunked", b"Chunked", b"CHUNKED", b" chunked", b"chunked ", b"chunked\t", b"\tchunked", b"chunked,", b",chunked",
    b"chunked;q=1", b"\"chunked\"", b"xchunked", b"chunkedx", b"chunk", b"identity", b"chunked, identity",
    b"identity, chunked", b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"cow", b"", b" ",
    b"\x0bchunked", b"chunked\x00", b"chunked\r", b"chunked\n", b"chu\r\n nked", b"\xffchunked",
]  # fmt: skip
CHUNK_TRICKS = {
    "capitals": b"%X\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "leading zeros": b"000%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "extension": b"%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(BODY), BODY),
    "odd extension": b"%x;a=\"\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "blank after the size": b"%x \r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "blank before the size": b" %x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "plus": b"+%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "minus": b"-1\r\n\r\n0\r\n\r\n",
    "0x": b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "bare LF": b"%x\n%b\n0\n\n" % (len(BODY), BODY),
    "LF after the size": b"%x\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "LF in an extension": b"%x;a\nb\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "CR after the size": b"%x\r%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "no line end after the data": b"%x\r\n%b0\r\n\r\n" % (len(BODY), BODY),
    "too long": b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) + 2, BODY),
    "too short": b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) - 2, BODY),
    "huge": b"ffffffffffffffff\r\n" + BODY,
    "beyond 64 bits": b"1000000000000000%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "above the bound": b"7fffffff\r\n" + BODY,
    "no size": b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "not hexadecimal": b"xyz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "no end": chunks(BODY, end=b""),
    "half an end": chunks(BODY, end=b"0\r\n"),
    "trailer": chunks(BODY, end=b"0\r\nx-trailer: 1\r\n\r\n"),
    "trailer of weight": chunks(BODY, end=b"0\r\ncontent-length: 5\r\nauthorization: Bearer x\r\n\r\n"),
    "trailer that is none": chunks(BODY, end=b"0\r\nnonsense\r\n\r\n"),
    "trailer that is a request": chunks(BODY, end=b"0\r\n" + SMUGGLED),
    "a request behind": chunks(BODY) + SMUGGLED,
    "a byte behind": chunks(BODY) + b"x",
    "bytes": chunks(*(BODY[n : n + 1] for n in range(len(BODY)))),
    "empty": b"0\r\n\r\n",
}  # fmt: skip
CONNECTIONS = [
    b"connection: close, keep-alive", b"connection: keep-alive, close", b"connection: close,", b"connection: ,close",
    b"connection: te, close", b"connection: keep-alive, te", b"connection: upgrade", b"connection: x-a",
    b"connection:", b"connection: content-type", b"connection: authorization", b"connection: content-length",
    b"connection: host", b"connection: transfer-encoding", b"connection: closed", b"connection: clos",
    b"connection: keep-alivex", b"connection: close\r\nconnection: close",
    b"connection: close\r\nconnection: keep-alive", b"connection: keep-alive\r\nconnection: close",
    b"connection: \"close\"", b"connection: close;x", b"connection: \x00", b"connection : close",
    b"connection\t: close", b"connection: cl\tose", b"keep-alive: timeout=1", b"connection_: close",
    b"proxy-connection: close", b"Proxy-Connection: keep-alive", b"proxy-connection: upgrade",
    b"proxy-connection: close\r\nconnection: keep-alive", b"connection: close\r\nproxy-connection: keep-alive",
]  # fmt: skip
UPGRADES = [
    b"upgrade: h2c", b"upgrade: websocket", b"upgrade:", b"connection: upgrade\r\nupgrade: websocket",
    b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIQ==",
    b"connection: upgrade\r\nupgrade: h2c, websocket", b"connection: upgrade\r\nupgrade: tls/1.0",
    b"connection: upgrade", b"proxy-connection: upgrade\r\nupgrade: websocket", b"upgrade: h2c\r\nconnection: close",
]  # fmt: skip
EXPECTATIONS = [
    b"100-continue", b"100-Continue", b"100-continue ", b"100-continue, x", b"", b"200-ok", b"100", b"100-continuex",
    b"100-continue\r\nexpect: 100-continue",
]  # fmt: skip
HOSTS = [
    b"host: weir\r\nhost: weir", b"host: weir\r\nHost: other", b"host:", b"host: weir:80", b"host: [::1]:80",
    b"host: a b", b"host: a/b", b"host: user@weir", b"host: weir, other", b"host: \xe9", b"host: weir\x00",
    b"host : weir", b"host: ?", b"host: weir\r\nx-forwarded-host: other", b"host: weir\r\nhost_: other",
]  # fmt: skip
ODD_LINES = [
    b": empty", b":", b"x", b"x x: 1", b"x\t: 1", b"x : 1", b" x: 1", b"\tx: 1", b"x: 1\r\n folded",
    b"x: 1\r\n\tfolded", b"x:\r\n folded", b"content-length: 5\r\n 0", b"x: \x00", b"x: a\x00b", b"x\x00: 1",
    b"x: \x01", b"x: \x0b", b"x: \x7f", b"x: \x80\xff", b"x: \xc3\xa9", b"x: caf\xe9", b"x: a\rb", b"x: a\nb",
    b"x: a\ny: b", b"x: a\ry: b", b"x: a\n", b"x: a\r", b"x: a\r\r\nz: 1", b"x\r: 1", b"x\n: 1", b"\r", b"\n",
    b"x(y): 1", b"x/y: 1", b"x@y: 1", b"x[y]: 1", b"x;y: 1", b"x,y: 1", b"x\"y: 1", b"x{y: 1", b"x=y: 1", b"x\\y: 1",
    b"x\xe9y: 1", b"!#$%&'*+.^`|~: 1", b"x.y: 1", b"x_y: 1", b"_: 1", b"-: 1", b"content_length: 5",
    b"transfer_encoding: chunked", b"transfer-encoding_: chunked", b"Content-Length-: 5", b"content-length\x00: 5",
    b"content\x2dlength : 5", b"authorization: Bearer <key>", b"Authorization: Bearer other", b"x-api-key: <key>",
    b"content-type: application/json", b"content-type: text/plain", b"x-request-id: a\r\nx-request-id: b",
    b"te: trailers", b"trailer: x-a", b"via: 1.1 a", b"max-forwards: 0", b"x-http-method-override: GET",
    b"x: " + b"l" * 8200, b"y" * 8200 + b": 1", b"range: bytes=0-1", b"if-match: x", b"cookie: a=b\r\ncookie: c=d",
    b"forwarded: for=1.2.3.4", b"x-forwarded-for: 1.2.3.4, 5.6.7.8",
]  # fmt: skip
BEGINNINGS = {
    "a blank line": b"\r\n" + post(),
    "three blank lines": b"\r\n\r\n\r\n" + post(),
    "a bare LF": b"\n" + post(),
    "a bare CR": b"\r" + post(),
    "a blank": b" " + post(),
    "a NUL": b"\x00" + post(),
    "a byte order mark": b"\xef\xbb\xbf" + post(),
    "line ends of LF": post().replace(b"\r\n", b"\n"),
    "line ends of CR": post().replace(b"\r\n", b"\r"),
    "a mixed line end": post().replace(b"\r\n", b"\n", 1),
    "LF at the head's end": post().replace(b"\r\n\r\n", b"\r\n\n", 1),
    "two LF at the head's end": post().replace(b"\r\n\r\n", b"\n\n", 1),
    "CR LF LF": post().replace(b"\r\n\r\n", b"\r\n\n\r\n", 1),
    "TLS": bytes.fromhex("16030102000100" + "01fc0303" + "00" * 60),
    "SSL 2": bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    "PROXY": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + post(),
    "PROXY 2": bytes.fromhex("0d0a0d0a000d0a515549540a20"),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SMTP": b"EHLO weir\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "noise": bytes(range(256)),
    "nothing": b"",
    "HTTP/0.9": b"GET /v1/models\r\n",
    "a status line": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "half a head": b"GET /v1/models HTTP/1.1\r\nhost: we",
    "half a line": b"GET /v1/mo",
    "a half that is odd": b"GET /v1/models?x",
    "one letter": b"P",
    "head without end": b"GET /v1/models HTTP/1.1\r\nhost: weir\r\n",
    "head as long as the bound": b"GET / HTTP/1.1\r\nx: " + b"l" * 8165 + b"\r\n\r\n",
    "half a head at the bound": b"GET / HTTP/1.1\r\nx: " + b"l" * 8171,
    "endless line": b"GET /" + b"l" * 9000,
    "200 lines": get(b"/v1/models", *(b"x-%d: 1" % n for n in range(200))),
}
# What may come one behind the other on a connection. The last ones end it, or leave it waiting.
PARTS = {
    "get": get(),
    "chat": post(),
    "stream": post(body=STREAM),
    "refused": post(body=b"nonsense"),
    "nowhere": get(b"/nowhere"),
    "chunked": post(CHUNKED, body=chunks(BODY), length=False),
    "query": get(b"/v1/models?x"),
    "head": head(b"HEAD /v1/models HTTP/1.1", HOST, KEY),
    "expecting": post(EXPECTING),
    "cl and te": post(CHUNKED, body=BODY + SMUGGLED),
    "close": post(b"connection: close"),
    "1.0": post(line=b"POST /v1/chat/completions HTTP/1.0"),
    "broken": b"NOT HTTP\r\n\r\n",
    "folded": get(b"/v1/models", b"x: 1\r\n folded"),
    "half": post()[:-20],
    "too large": head(LINE, HOST, KEY, JSON, b"content-length: 99999999"),
}


def listed() -> Iterator[tuple[str, Steps]]:
    """Every conversation with its name."""
    for title, data in USUAL.items():
        yield f"usual: {title}", [data]
    for path in PATHS:
        yield f"path {path!r}", [head(b"GET %b HTTP/1.1" % path, HOST, KEY)]
    for method in METHODS:
        yield f"method {method!r}", [head(b"%b /v1/models HTTP/1.1" % method, HOST, KEY)]
    yield "method HEAD with a body", [post(line=b"HEAD /v1/chat/completions HTTP/1.1") + SMUGGLED]
    yield "method GET with a body", [post(line=b"GET /v1/models HTTP/1.1") + SMUGGLED]
    yield "method GET with a chunked body", [head(b"GET /v1/models HTTP/1.1", HOST, KEY, CHUNKED) + chunks(SMUGGLED)]
    for version in VERSIONS:
        yield f"version {version!r}", [post(line=b"POST /v1/chat/completions " + version)]
    yield (
        "version HTTP/1.0, kept",
        [post(b"connection: keep-alive", line=b"POST /v1/chat/completions HTTP/1.0") + get()],
    )
    yield "version HTTP/1.0, a stream", [post(line=b"POST /v1/chat/completions HTTP/1.0", body=STREAM)]
    for value in LENGTHS:
        line = b"content-length: " + value.replace(b"%b", SIZE)
        yield f"length {value!r}", [post(line, length=False) + SMUGGLED]
    for first, second in ((SIZE, SIZE), (SIZE, b"0"), (b"0", SIZE), (SIZE, b"")):
        lines = (b"content-length: " + first, b"Content-Length: " + second)
        yield f"lengths {first!r} and {second!r}", [post(*lines, length=False) + SMUGGLED]
    for name in (b"content-length ", b"content-length\t", b" content-length", b"content-length\x00", b"content_length"):
        yield f"length by the name {name!r}", [post(b"%b: %b" % (name, SIZE), length=False) + SMUGGLED]
    yield "length of less", [post(b"content-length: 5", length=False)]
    yield "length of more", [post(b"content-length: 500", length=False) + SMUGGLED]
    for coding in CODINGS:
        line = b"transfer-encoding: " + coding
        yield f"coding {coding!r}", [post(line, body=chunks(BODY), length=False) + SMUGGLED]
        yield f"coding {coding!r} and a length", [post(line, body=chunks(BODY)) + SMUGGLED]
        yield (
            f"coding {coding!r} after a length of 5",
            [post(b"content-length: 5", line, body=chunks(BODY), length=False) + SMUGGLED],
        )
    for name in (
        b"transfer-encoding ",
        b" transfer-encoding",
        b"transfer_encoding",
        b"Transfer-Encoding\t",
        b"x:\ntransfer-encoding",
    ):
        yield f"coding by the name {name!r}", [post(name + b": chunked", body=chunks(BODY)) + SMUGGLED]
    yield "coding twice", [post(CHUNKED, CHUNKED, body=chunks(BODY), length=False) + SMUGGLED]
    yield (
        "coding identity, then chunked",
        [post(b"transfer-encoding: identity", CHUNKED, body=chunks(BODY), length=False)],
    )
    for title, body in CHUNK_TRICKS.items():
        yield f"chunks: {title}", [post(CHUNKED, body=body, length=False)]
    for line in CONNECTIONS:
        yield f"{line!r}", [post(line)]
        yield f"{line!r} with a request behind", [post(line) + get()]
    for line in UPGRADES:
        yield f"{line!r}", [get(b"/v1/models", line)]
        yield f"{line!r} with a body", [post(line) + get()]
    for value in EXPECTATIONS:
        yield f"expect {value!r}", [post(b"expect: " + value)]
        whole = post(b"expect: " + value)
        yield f"expect {value!r}, then the body", [whole[: -len(BODY)], BODY]
    yield "expect without a body", [get(b"/v1/models", EXPECTING)]
    for line in HOSTS:
        yield f"{line!r}", [head(b"GET /v1/models HTTP/1.1", line, KEY)]
    for line in ODD_LINES:
        yield f"line {line[:60]!r}", [post(line)]
        yield f"last line {line[:60]!r}", [head(b"GET /v1/models HTTP/1.1", HOST, KEY, line) + get()]
    for title, data in BEGINNINGS.items():
        yield f"begins with {title}", [data]
        yield f"a request, then {title}", [get(), data]
    for one, other in product(PARTS, PARTS):
        yield f"{one} and {other} at once", [PARTS[one] + PARTS[other]]
        yield f"{one} and then {other}", [PARTS[one], PARTS[other]]
    yield "everything at once", [b"".join([*PARTS.values()][:8]) * 3]
    yield "thirty at once", [post() * 30]
    yield "smuggled in a body", [post(body=SMUGGLED)]
    yield "smuggled behind a GET", [get(b"/v1/models", b"content-length: %d" % len(SMUGGLED)) + SMUGGLED]


CONVERSATIONS: dict[str, Steps] = dict(listed())


def written(steps: Sequence[bytes], key: str, model: str) -> Steps:
    """The steps with key and model in their places."""
    assert len(model) == len(MODEL)
    return [step.replace(b"<key>", key.encode()).replace(MODEL, model.encode()) for step in steps]
