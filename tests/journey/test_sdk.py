"""The main job: the official SDK, pointed at Weir with a Weir key, works unchanged; the row is right to the token."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx2
import openai
import pytest

from tests.journey.conftest import House, chat

SCRIPT = {"tokens": 7, "prompt_tokens": 11, "cached_tokens": 4, "reasoning_tokens": 2}


class Counting(httpx2.BaseTransport):
    """Counts the requests that the SDK really sends."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self._inner = httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def rid() -> tuple[str, dict[str, str]]:
    """A request id of one's own, and the header that carries it."""
    request_id = f"sdk-{uuid.uuid4().hex[:16]}"
    return request_id, {"x-request-id": request_id}


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_chat(house: House, way: str, stream: bool, asked: bool | None) -> None:
    """A chat completion arrives as the upstream sent it, usage only where asked for, and its row is exact."""
    if not stream and asked is not None:
        pytest.skip("stream_options belong to streams")
    request_id, headers = rid()
    body: dict[str, Any] = {**chat(SCRIPT), "stream": stream, "extra_headers": headers}
    if asked is not None:
        body["stream_options"] = {"include_usage": asked}
    chunks = run_async(house, body) if way == "async" else run_sync(house, body)
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "".join(f"w{n} " for n in range(7))
        usages = [c.usage for c in chunks if c.usage is not None]
        assert len(usages) == (1 if asked else 0)
        assert all(c.choices for c in chunks) is not bool(asked)
    else:
        assert chunks[0].usage.completion_tokens == 7
    row = house.row(request_id)
    assert {
        name: row[name]
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "source", "termination")
    } == {
        "prompt_tokens": 11,
        "cached_tokens": 4,
        "completion_tokens": 7,
        "reasoning_tokens": 2,
        "source": "provider",
        "termination": "complete",
    }
    assert (row["tenant"], row["endpoint"], row["model"]) == ("acme", "chat.completions", "m1")
    assert bool(row["stream"]) is stream


def run_sync(house: House, body: dict[str, Any]) -> list[Any]:
    """The chunks of a stream, or the one answer."""
    with openai.OpenAI(api_key=house.weir.key, base_url=house.weir.url, max_retries=0) as client:
        answer = client.chat.completions.create(**body)
        return list(answer) if body["stream"] else [answer]


def run_async(house: House, body: dict[str, Any]) -> list[Any]:
    """The same by the asynchronous client."""

    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(api_key=house.weir.key, base_url=house.weir.url, max_retries=0) as client:
            answer = await client.chat.completions.create(**body)
            return [chunk async for chunk in answer] if body["stream"] else [answer]

    return asyncio.run(run())


@pytest.fixture
def client(house: House) -> Any:
    """The synchronous client, with its usual retries."""
    with openai.OpenAI(api_key=house.weir.key, base_url=house.weir.url) as made:
        yield made


def test_completions_and_embeddings(house: House, client: openai.OpenAI) -> None:
    """The two other endpoints work and are metered."""
    request_id, headers = rid()
    prompt = '@{"tokens":3,"prompt_tokens":5} hello'
    answer = client.completions.create(model="m1", prompt=prompt, extra_headers=headers)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    row = house.row(request_id)
    assert (row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == ("completions", 5, 3)
    request_id, headers = rid()
    vectors = client.embeddings.create(
        model="m1", input='@{"prompt_tokens":6} hello', encoding_format="float", extra_headers=headers
    )
    assert vectors.data[0].embedding
    row = house.row(request_id)
    assert (row["endpoint"], row["prompt_tokens"], row["completion_tokens"]) == ("embeddings", 6, 0)


def test_streamed_completions(house: House, client: openai.OpenAI) -> None:
    """A streamed completion without usage asked for is metered all the same."""
    request_id, headers = rid()
    answer = client.completions.create(
        model="m1", prompt='@{"tokens":4,"prompt_tokens":2} hello', stream=True, extra_headers=headers
    )
    assert len([chunk for chunk in answer if chunk.choices]) >= 4
    row = house.row(request_id)
    assert (row["prompt_tokens"], row["completion_tokens"], row["source"]) == (2, 4, "provider")


def test_models(client: openai.OpenAI) -> None:
    """The model list names what this key may use, and each of its names can be fetched."""
    names = [model.id for model in client.models.list()]
    assert {"priced", "renamed", "chat-only"} <= set(names)
    assert client.models.retrieve("priced").id == "priced"
    assert client.models.retrieve("org/model-1").id == "org/model-1"  # on the wire its slash is %2F
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


REFUSALS: list[tuple[dict[str, Any], dict[str, str], type[openai.APIStatusError], str | None, int]] = [
    (chat(), {"authorization": "Bearer wk_live_wrong"}, openai.AuthenticationError, "invalid_api_key", 1),
    (chat(model="x" * 97), {}, openai.NotFoundError, "model_not_found", 1),
    (
        chat({"status": 400, "body": {"error": {"message": "no", "code": "invalid_value"}}}),
        {},
        openai.BadRequestError,
        "invalid_value",
        1,
    ),
    (chat({"status": 401}), {}, openai.InternalServerError, "upstream_refused_us", 1),
    (chat({"status": 403}), {}, openai.InternalServerError, "upstream_refused_us", 1),
    (
        chat({"status": 404, "body": {"error": {"message": "no", "code": "model_not_found"}}}),
        {},
        openai.NotFoundError,
        "model_not_found",
        1,
    ),
    (chat({"status": 409}), {}, openai.ConflictError, None, 1),
    (chat({"status": 422}), {}, openai.UnprocessableEntityError, None, 1),
    (
        chat({"status": 302}),
        {},
        openai.InternalServerError,
        "upstream_refused",
        1,
    ),
    (chat({"status": 402}), {}, openai.InternalServerError, "upstream_refused", 1),
    (chat({"status": 410}), {}, openai.InternalServerError, "upstream_refused", 1),
    (chat({"status": 500}), {}, openai.InternalServerError, "upstream_failed", 3),
    (chat({"status": 429, "headers": [["retry-after-ms", "20"]]}), {}, openai.RateLimitError, "upstream_busy", 3),
    (chat({"close_at": -1}), {}, openai.InternalServerError, "upstream_lost", 1),
    (chat({"encoding": "gzip"}), {}, openai.InternalServerError, "upstream_protocol", 1),
    (chat({"stall_at": -1}, model="brief"), {}, openai.InternalServerError, "upstream_timeout", 1),
    (chat(model="unreachable"), {}, openai.InternalServerError, "upstream_unreachable", 3),
    (chat(n=0), {}, openai.BadRequestError, "bad_value", 1),
    (chat(model="narrow", prompt="word " * 400), {}, openai.RateLimitError, "request_too_large", 1),
]


@pytest.mark.parametrize(("body", "headers", "error", "code", "tries"), REFUSALS, ids=lambda v: str(v)[:40])
def test_errors_map_and_nothing_is_retried_in_vain(
    house: House,
    body: dict[str, Any],
    headers: dict[str, str],
    error: type[openai.APIStatusError],
    code: str,
    tries: int,
) -> None:
    """Each refusal becomes the SDK's own class, and the SDK tries again only where that can help."""
    counting = Counting()
    with openai.OpenAI(
        api_key=house.weir.key, base_url=house.weir.url, http_client=httpx2.Client(transport=counting)
    ) as client:
        with pytest.raises(error) as caught:
            client.chat.completions.create(**body, extra_headers=headers)
    assert caught.value.code == code
    assert len(counting.requests) == tries
    assert caught.value.response.headers["x-weir-error"] in ("client", "gateway", "upstream")
    assert caught.value.request_id


def test_a_limit_of_ones_own_says_when_to_come_back(house: House, client: openai.OpenAI) -> None:
    """A tenant's own limit answers 429 with OpenAI's headers and a delay that the SDK obeys."""
    seen = []
    codes = []
    for _ in range(4):
        try:
            raw = client.with_options(max_retries=0).chat.completions.with_raw_response.create(**chat(model="tight"))
            seen.append((200, raw.headers))
        except openai.RateLimitError as refused:
            seen.append((429, refused.response.headers))
            codes.append(refused.code)
    assert codes == ["rate_limit_exceeded"] * 2
    assert [status for status, _ in seen] == [200, 200, 429, 429]
    assert seen[0][1]["x-ratelimit-limit-requests"] == "2"
    assert [headers["x-ratelimit-remaining-requests"] for _, headers in seen] == ["1", "0", "0", "0"]
    assert 0 < int(seen[2][1]["retry-after-ms"]) <= 30_000
    assert seen[2][1]["x-should-retry"] == "true"
    assert seen[2][1]["x-weir-error"] == "client"
