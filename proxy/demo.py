"""The built-in demo upstream: what `weir run` serves when no real upstream is named.

It lets the first answer come without an account. It speaks just enough of OpenAI's protocol to be useful with the
official SDKs: chat, completions and embeddings, streamed and whole, with usage that is right by its own measure: a
token is a word. It knows no keys and belongs on the loopback only.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiohttp import web

from proxy import clock

MODEL = "demo-small"
WORD_SECONDS = 0.02  # about fifty words a second: visibly a stream, soon over
ANSWER_TOKENS_MAX = 400  # the demo never talks longer, whatever it is asked

ANSWER = (
    "Hello! You reached the demo upstream that is built into Weir. I am not a language model, only a voice to try the "
    "way with. Every word of this answer is one token, it passed through the gateway as it was spoken, and it is "
    "metered to your key. You asked me {words} words. Name a real upstream in WEIR_UPSTREAM_URL, and the same call "
    "will reach it."
)


def _texts(value: Any) -> Iterator[str]:
    """Every text inside a request's messages, prompt or input."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(value.get("content", value.get("text")))


def _count(asked: dict[str, Any]) -> int:
    return sum(len(text.split()) for name in ("messages", "prompt", "input") for text in _texts(asked.get(name)))


def _words(asked: dict[str, Any], prompt_tokens: int) -> tuple[list[str], str]:
    """The answer's words and the reason it ends. Raises ValueError for a length that is no whole number."""
    words = [word + " " for word in ANSWER.format(words=prompt_tokens).split()]
    limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
    limit = ANSWER_TOKENS_MAX if limit is None else limit
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ValueError("max_tokens must be a whole number")
    return (words[:limit], "length") if limit < len(words) else (words, "stop")


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


async def _frames(asked: dict[str, Any], head: dict[str, Any], chat: bool) -> AsyncIterator[bytes]:
    """A stream's frames: role, words, reason, usage if asked, [DONE]."""
    prompt = _count(asked)
    words, reason = _words(asked, prompt)
    ask = (asked.get("stream_options") or {}).get("include_usage") is True
    if ask:
        head = {**head, "usage": None}

    def frame(text: str | None, reason: str | None, role: bool = False) -> bytes:
        delta = ({"role": "assistant"} if role else {}) | ({} if text is None else {"content": text})
        said = {"delta": delta} if chat else {"text": text or ""}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return b"data: " + _encode({**head, "choices": [choice]}) + b"\n\n"

    if chat:
        yield frame("", None, role=True)
    for word in words:
        await asyncio.sleep(WORD_SECONDS)
        yield frame(word, None)
    yield frame(None, reason)
    if ask:
        yield b"data: " + _encode({**head, "choices": [], "usage": _usage(prompt, len(words))}) + b"\n\n"
    yield b"data: [DONE]\n\n"


async def _stream(
    request: web.BaseRequest, asked: dict[str, Any], head: dict[str, Any], chat: bool
) -> web.StreamResponse:
    frames = _frames(asked, head, chat)
    first = await anext(frames)  # a bad length is an error answer, not a broken stream
    answer = web.StreamResponse(
        headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
    )
    await answer.prepare(request)
    await answer.write(first)
    async for frame in frames:
        await answer.write(frame)
    await answer.write_eof()
    return answer


def _whole(asked: dict[str, Any], head: dict[str, Any], chat: bool) -> web.Response:
    prompt = _count(asked)
    words, reason = _words(asked, prompt)
    text = "".join(words)
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
    )
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
    return _json({**head, "choices": [choice], "usage": _usage(prompt, len(words))})


def _embeddings(asked: dict[str, Any]) -> web.Response:
    given = asked.get("input")
    inputs = given if isinstance(given, list) else [given]
    data = [{"object": "embedding", "index": at, "embedding": [0.6, 0.0, -0.8]} for at in range(len(inputs))]
    prompt = _count(asked)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    return _json({"object": "list", "data": data, "model": asked.get("model", MODEL), "usage": usage})


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return _json({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}, status)


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """Answers one request; what it does not know is a 404 or 400 in OpenAI's shape."""
    seconds = clock.wall_us() // 1_000_000
    if request.path == "/v1/models" and request.method == "GET":
        model = {"id": MODEL, "object": "model", "created": seconds, "owned_by": "weir"}
        return _json({"object": "list", "data": [model]})
    if request.method != "POST" or request.path not in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        return _error(404, "The demo upstream has no such endpoint.")
    try:
        asked = json.loads(await request.read())
        if not isinstance(asked, dict):
            raise ValueError("the body must be an object")
        if request.path == "/v1/embeddings":
            return _embeddings(asked)
        chat = request.path == "/v1/chat/completions"
        streamed = asked.get("stream") is True
        kind = ("chat.completion.chunk" if streamed else "chat.completion") if chat else "text_completion"
        head = {"id": f"demo-{clock.now_ns()}", "object": kind, "created": seconds, "model": asked.get("model", MODEL)}
        return await _stream(request, asked, head, chat) if streamed else _whole(asked, head, chat)
    except ValueError as error:
        return _error(400, f"The demo upstream cannot read this request: {error}.")


async def serve(host: str, port: int, stop: asyncio.Event, ready: asyncio.Future[int] | None = None) -> None:
    """Serves until `stop` is set; `ready` gets the port. Raises OSError when the address cannot be had."""
    server = web.Server(answer, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        if ready is not None:
            ready.set_result(runner.addresses[0][1])
        await stop.wait()
    finally:
        await runner.cleanup()


def run(host: str = "127.0.0.1", port: int = 8081) -> int:
    """The process `weir demo`: serves until SIGTERM or SIGINT and returns 0."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(host, port, stop)

    asyncio.run(main())
    return 0
