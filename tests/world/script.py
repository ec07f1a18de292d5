"""What the scripted upstream says, as pure functions: a script in, payload pieces out. No I/O and no time here.

A request carries its own script: when the last message's content (or `prompt`, or `input`) starts with `@{`, the JSON
object that follows the `@` is a `Script`; the text behind it is the prompt. Without one the defaults hold.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

UsageWay = Literal[
    "asked", "none", "always", "twice", "cumulative", "last_content", "negative", "float", "huge", "string", "null"
]
Framing = Literal["chunked", "length", "close", "http10"]


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """One request's stage directions. Positions count payload frames: 0 is after the head, -1 before the head.

    A whole answer that is to be cut further on is cut in its middle.
    """

    keep: bool = False  # write this request's headers and body into the ledger
    # what is said
    tokens: int = 8  # content frames of a stream; completion_tokens of either kind of answer
    prompt_tokens: int = -1  # -1: the number of words of the prompt
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    word: str = ""  # text of each token; "" gives "w<i> "
    model: str = ""  # the model the answer names; "" gives the one asked for
    usage: UsageWay | dict[str, Any] = "asked"  # as OpenAI (only when asked), a known way to lie, or this very object
    spaced: bool = False  # `"usage": {` instead of `"usage":{`
    done: bool = True  # [DONE] at the end
    first_empty: bool = False  # a first chunk with empty `choices` (Azure's prompt filter results)
    comments: bool = False  # `: ping` before each frame
    error_at: int | None = None  # an `error` frame at this position
    endless: bool = False
    line_bytes: int = 0  # one content frame with so long a line
    payload_b64: str = ""  # these very payload bytes instead of all the above
    # how its lines look
    line_end: Literal["lf", "crlf", "cr"] = "lf"
    bom: bool = False
    # when
    first_ms: float = 0  # before the status line
    body_ms: float = 0  # between head and body
    delay_ms: float = 0  # before each frame
    # how it goes wrong; at most one of them applies, the first in this order
    reset_at: int | None = None  # RST at this position
    close_at: int | None = None  # FIN at this position, no terminator
    stall_at: int | None = None  # silence from this position on, until the client goes
    short: int = 0  # Content-Length promises so many bytes more than are sent, then FIN
    # how it is put on the wire
    framing: Framing | None = None  # None: chunked for a stream, length for a whole answer
    split: tuple[int, ...] = ()  # sizes of the writes, used in turn; each is a chunk of its own when chunked
    drip: bool = False  # one byte a write
    split_ms: float = 0  # pause between those writes
    trailers: dict[str, str] | None = None
    early: tuple[int, ...] = ()  # 1xx heads before the real one
    headers: tuple[tuple[str, str], ...] = ()  # added to the head, or given there by this name instead of the default
    header_bytes: int = 0  # one more header with so long a value
    encoding: str = ""  # Content-Encoding; the body is really gzip when it says "gzip"
    close_after: bool = False  # FIN right after the answer, without having announced it
    idle_close_ms: float = 0  # FIN so long after the answer, without having announced it
    # another answer altogether
    status: int = 200
    body: str | dict[str, Any] | None = None  # with `status` != 200; None gives OpenAI's error shape
    fail_first: tuple[str, int, int] | None = None  # (name, times, status): the first requests of this name fail so


class Facts(NamedTuple):
    """What the upstream understood of a request."""

    endpoint: str  # chat, completions, embeddings, models, or "" for an unknown path
    model: str
    stream: bool
    usage_asked: bool
    prompt_tokens: int
    script: Script


class Piece(NamedTuple):
    """Payload that is sent at one stroke. `tokens` is its share of completion_tokens; `frames` its data frames."""

    data: bytes
    frames: int = 1
    tokens: int = 0
    usage: bool = False  # it carries the true usage


class BadScript(Exception):
    """The script of a request cannot be read: a mistake of the test's author."""


_script = msgspec.json.Decoder(Script)
_PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/models": "models",
}


def read_facts(path: str, body: bytes) -> Facts:
    """Understands a request's body. Raises BadScript."""
    endpoint = _PATHS.get(path, "")
    try:
        asked: Any = json.loads(body) if body else {}
    except ValueError as error:
        raise BadScript(f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise BadScript("the body is not an object")
    last, text = _prompt(asked)
    script = Script()
    if last.startswith("@{"):
        try:
            _, end = json.JSONDecoder().raw_decode(last, 1)
            script = _script.decode(last[1:end].encode())
        except (ValueError, msgspec.ValidationError) as error:
            raise BadScript(f"bad script: {error}") from None
        text = text.replace(last[:end], "", 1)
    words = len(text.split())
    options = asked.get("stream_options") or {}
    return Facts(
        endpoint,
        str(asked.get("model", "")),
        asked.get("stream") is True,
        options.get("include_usage") is True,
        script.prompt_tokens if script.prompt_tokens >= 0 else words,
        script,
    )


def _prompt(asked: dict[str, Any]) -> tuple[str, str]:
    """(the text that may start with a script, all text)."""
    texts: list[str] = []
    for message in asked.get("messages") or []:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        for part in content if isinstance(content, list) else []:
            texts.append(str(part.get("text", "")))
    for name in ("prompt", "input"):
        value = asked.get(name)
        for item in [value] if isinstance(value, str) else value or []:
            texts.append(str(item))
    return (texts[-1] if texts else "", " ".join(texts))


# === usage ===


def true_usage(facts: Facts, completion: int) -> dict[str, Any]:
    """The honest figures, in OpenAI's shape."""
    script = facts.script
    usage: dict[str, Any] = {"prompt_tokens": facts.prompt_tokens, "total_tokens": facts.prompt_tokens + completion}
    if facts.endpoint != "embeddings":
        usage["completion_tokens"] = completion
        usage["prompt_tokens_details"] = {"cached_tokens": script.cached_tokens, "audio_tokens": 0}
        usage["completion_tokens_details"] = {"reasoning_tokens": script.reasoning_tokens, "audio_tokens": 0}
    return usage


def said_usage(facts: Facts, completion: int) -> Any:
    """The figures as the script wants them said; None when it wants none."""
    way = facts.script.usage
    if isinstance(way, dict):
        return way
    if way == "none":
        return None
    usage = true_usage(facts, completion)
    wrong = {"negative": -5, "float": 7.5, "huge": 2**70, "string": "12"}.get(way)
    if wrong is not None:
        usage["completion_tokens"] = wrong
    return None if way == "null" else usage


def is_true(facts: Facts) -> bool:
    """Whether the usage that the script says is the true one."""
    return facts.script.usage in ("asked", "always", "twice", "cumulative", "last_content")


# === a whole answer ===


def whole_answer(facts: Facts) -> bytes:
    """The JSON body of a call that is not streamed."""
    script = facts.script
    if script.payload_b64:
        return base64.b64decode(script.payload_b64)
    model = script.model or facts.model
    text = "".join(script.word or f"w{i} " for i in range(script.tokens))
    usage = said_usage(facts, script.tokens)
    answer: dict[str, Any]
    if facts.endpoint == "models":
        answer = {"object": "list", "data": [{"id": "mock-model", "object": "model", "created": 1, "owned_by": "mock"}]}
        usage = None
    elif facts.endpoint == "embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25, 0.125]}]
        answer = {"object": "list", "data": data, "model": model}
    elif facts.endpoint == "completions":
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": model, "choices": [choice]}
    else:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
    if usage is not None or script.usage == "null":
        answer["usage"] = usage
    return _json(answer, script)


def failure(status: int, script: Script) -> bytes:
    """The body of an answer with another status than 200."""
    if isinstance(script.body, str):
        return script.body.encode()
    if script.body is not None:
        return json.dumps(script.body).encode()
    kind = {401: "invalid_request_error", 429: "requests"}.get(status, "server_error")
    error = {"message": f"scripted failure of account org-upstream-secret with {status}", "type": kind, "code": None}
    return json.dumps({"error": {**error, "param": None}}).encode()


def coded(data: bytes, encoding: str) -> bytes:
    """The body in the content coding that its header names; codings other than gzip are only named."""
    return gzip.compress(data, mtime=0) if encoding == "gzip" else data


# === a stream ===


def stream_pieces(facts: Facts) -> Iterator[Piece]:
    """The payload of a stream, frame by frame, [DONE] included."""
    script = facts.script
    if script.payload_b64:
        data = base64.b64decode(script.payload_b64)
        yield Piece(data, data.count(b"\n\n") or data.count(b"\r\n\r\n"))
        return
    bom = b"\xef\xbb\xbf" if script.bom else b""
    for piece in _frames(facts):
        data = piece.data
        if script.comments:
            data = b": ping\n\n" + data
        if script.line_end != "lf":
            data = data.replace(b"\n", {"crlf": b"\r\n", "cr": b"\r"}[script.line_end])
        yield piece._replace(data=bom + data)
        bom = b""


def _frames(facts: Facts) -> Iterator[Piece]:
    script = facts.script
    way = script.usage
    lies = isinstance(way, dict) or way in ("negative", "float", "huge", "string")
    says = facts.usage_asked if way == "asked" or lies else way in ("always", "twice")
    nulls: dict[str, Any] = {"usage": None} if says or way == "null" else {}
    if script.first_empty:
        yield Piece(_frame(facts, [], {"prompt_filter_results": [{"prompt_index": 0}], **nulls}))
    at = 0
    while script.endless or at < script.tokens:
        if script.error_at == at:
            yield Piece(b'data: {"error":{"message":"scripted","type":"server_error","code":null}}\n\n')
        extra = nulls
        if way == "cumulative" or (way == "last_content" and at == script.tokens - 1):
            extra = {"usage": true_usage(facts, at + 1)}
        content = script.word or f"w{at} "
        if script.line_bytes and at == 0:
            content = "x" * script.line_bytes
        last = at == script.tokens - 1 and not script.endless
        yield Piece(_frame(facts, [_choice(facts, content, last)], extra), 1, 1, bool(extra.get("usage")) and last)
        at += 1
    if says:
        for turn in range(2 if way == "twice" else 1):
            usage = said_usage(facts, at if turn or way != "twice" else 1)
            yield Piece(_frame(facts, [], {"usage": usage}), 1, 0, is_true(facts) and (turn == 1 or way != "twice"))
    if script.done:
        yield Piece(b"data: [DONE]\n\n")


def _choice(facts: Facts, content: str, last: bool) -> dict[str, Any]:
    body = {"text": content} if facts.endpoint == "completions" else {"delta": {"content": content}}
    return {"index": 0, **body, "logprobs": None, "finish_reason": "stop" if last else None}


def _frame(facts: Facts, choices: list[Any], extra: dict[str, Any]) -> bytes:
    script = facts.script
    kind = "text_completion" if facts.endpoint == "completions" else "chat.completion.chunk"
    head = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": script.model or facts.model}
    return b"data: " + _json({**head, "choices": choices, **extra}, script) + b"\n\n"


def _json(value: Any, script: Script) -> bytes:
    return json.dumps(value, separators=(", ", ": ") if script.spaced else (",", ":")).encode()
