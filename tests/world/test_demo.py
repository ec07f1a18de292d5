"""The demo upstream satisfies the official SDK, and its usage counts what it said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import openai
import pytest

from proxy import demo


def with_demo(scene: Callable[[openai.AsyncOpenAI], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays a scene against a demo upstream that speaks without pauses."""
    monkeypatch.setattr(demo, "WORD_SECONDS", 0)

    async def go() -> None:
        stop = asyncio.Event()
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(demo.serve("127.0.0.1", 0, stop, ready))
        url = f"http://127.0.0.1:{await ready}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await scene(client)
        stop.set()
        await serving

    asyncio.run(go())


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_counts_its_words(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: a streamed answer comes word by word, and usage is there exactly when asked, equal to the words."""

    async def scene(client: openai.AsyncOpenAI) -> None:
        words = []
        usage = None
        options: dict[str, bool] = {"include_usage": True}
        more = {"stream_options": options} if asked else {}
        stream = await client.chat.completions.create(
            model="demo-small", messages=[{"role": "user", "content": "one two three"}], stream=True, **more
        )
        async for chunk in stream:
            words += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            usage = chunk.usage or usage
        assert "You asked me 3 words" in "".join(words)
        if asked:
            assert usage is not None
            assert (usage.prompt_tokens, usage.completion_tokens) == (3, len(words))
        else:
            assert usage is None

    with_demo(scene, monkeypatch)


def test_whole_answers_lists_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: whole chat, completions, embeddings and models parse in the SDK; max_tokens cuts; a bad body is a 400."""

    async def scene(client: openai.AsyncOpenAI) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
        chat = await client.chat.completions.create(model="x", messages=messages, max_tokens=4)
        assert chat.usage is not None
        assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (2, 4)
        assert chat.choices[0].finish_reason == "length"
        text = await client.completions.create(model="x", prompt="one")
        assert text.usage is not None
        assert text.usage.completion_tokens == len(text.choices[0].text.split())
        vectors = await client.embeddings.create(model="x", input=["one two", "three"], encoding_format="float")
        assert len(vectors.data) == 2
        assert vectors.usage.prompt_tokens == 3
        assert [model.id async for model in client.models.list()] == [demo.MODEL]
        with pytest.raises(openai.BadRequestError, match="whole number"):
            await client.chat.completions.create(model="x", messages=messages, max_tokens=-1, stream=True)
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nothing")

    with_demo(scene, monkeypatch)
