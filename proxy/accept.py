"""Step 1: judge the request's line, head and body, and shape a refusal in the caller's dialect."""

from __future__ import annotations

from collections.abc import Callable

from proxy import bounds
from proxy._scan import BadBody, BadHead, peek, read_head
from proxy.call import Call
from proxy.dialects import openai_chat as dialect
from proxy.errors import Refusal
from proxy.exchange import Exchange

_CONTINUE = b"100-continue"
_JSON = (b"application/json", None)  # as it is nearly always written
_FAILED = Refusal("internal_error")


def accept(exchange: Exchange, new_request_id: Callable[[], str]) -> Call:
    """Endpoint and head of the request. Paths must match to the byte: no decoding, no normalising, no query."""
    path = exchange.raw_path
    endpoint = dialect.ENDPOINTS.get(path)
    if endpoint is None:
        if not path.startswith(dialect.MODEL_PREFIX) or len(path) == len(dialect.MODEL_PREFIX):
            raise Refusal("unknown_endpoint", _printable(path))
        endpoint = dialect.MODEL
    if exchange.method != endpoint.method:
        allow = b"allow: %b\r\n" % endpoint.method.encode()  # RFC 9110, 15.5.6
        raise Refusal("method_not_allowed", _printable(exchange.method), headers=allow)
    try:
        head = read_head(exchange.raw_headers)
    except BadHead as error:
        exchange.close = True  # who reads this head in another way sees another request begin behind it
        raise Refusal(error.args[0], error.args[1]) from None
    if head.content_length > bounds.BODY_BYTES_MAX:
        raise Refusal("body_too_large", str(bounds.BODY_BYTES_MAX))
    expect = head.expect
    if expect is not None and expect.lower() != _CONTINUE:
        raise Refusal("expectation_failed", _printable(expect.decode("latin-1")))
    kept = head.request_id
    return Call(exchange, endpoint, head, new_request_id() if kept is None else kept.decode("ascii"))


async def read_body(call: Call) -> None:
    """The whole body, bounded in size and time, and what it says. Only now may the client send what it held back."""
    exchange = call.exchange
    body = exchange.body_now()
    if body is None:
        if call.head.expect is not None:
            exchange.say_continue()
        body = await exchange.body(bounds.BODY_BYTES_MAX, bounds.BODY_SECONDS_MAX)
    content_type = call.head.content_type
    if content_type not in _JSON and content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise Refusal("unsupported_media_type", _printable(content_type.decode("latin-1")))
    try:
        call.facts = peek(body)
    except BadBody as error:
        code, detail, param = error.args
        raise Refusal(code, detail, param=param) from None
    call.body = body


def refuse(exchange: Exchange, refusal: Refusal, request_id: str) -> None:
    """Answers with the refusal. The connection ends with it when the request's body was never read to its end."""
    own = (exchange.lines + refusal.headers).decode("latin-1")
    lines = f"x-request-id: {request_id}\r\n{dialect.refusal_headers(refusal)}{own}"
    close = exchange.close or exchange.body_now() is None
    whole = dialect.answer(refusal.kind.status, lines, dialect.refusal_body(refusal), close=close)
    if exchange.method == "HEAD":  # it waits for no content, and would take it for the next answer (RFC 9110, 9.3.2)
        whole = whole[: whole.index(b"\r\n\r\n") + 4]
    exchange.answer(whole, close=close)


def internal_error(lines: bytes) -> bytes:
    """The answer to a request that failed inside Weir. lines: header lines of its own, each ended by CRLF."""
    headers = lines.decode("latin-1") + dialect.refusal_headers(_FAILED)
    return dialect.answer(500, headers, dialect.refusal_body(_FAILED), close=True)


def _printable(text: str, length_max: int = 80) -> str:
    """A client's own words in an answer or a log: quoted, escaped and cut."""
    return ascii(text if len(text) <= length_max else text[:length_max] + "...")
