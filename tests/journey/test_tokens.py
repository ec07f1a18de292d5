"""Tokens that no provider counted: reserved, streamed, cut, killed, and in the row as tiktoken counts what went by."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import uuid
from pathlib import Path
from threading import Event
from typing import Any

import openai
import pytest
import tokenizers

from proxy.tokens.calibration import Ratio
from proxy.tokens.estimate import fixed_tokens, prompt_tokens, text_tokens
from proxy.tokens.tokenizer import Exact
from tests.journey.calling import Client
from tests.journey.conftest import BURST_FITS, House, chat
from tests.journey.inside import inside
from tests.tokens import oracle
from tests.world.gateway import wait_for

HARD = "Grüße 你好！नमस्ते 🇩🇪👩‍👩‍👧 don't  \n\n"  # one token of the scripted upstream


def prompt_of(body: dict[str, Any], encoding: str = "o200k_base", primer: int = 3) -> int:
    """The prompt tokens of a chat by the cookbook: 3 a message, its role and content, and the start of the answer."""
    return primer + sum(
        3 + sum(oracle.count(encoding, message[name]) for name in ("role", "content")) for message in body["messages"]
    )


def words(count: int, word: str = "") -> str:
    """What the scripted upstream says in so many frames."""
    return "".join(word or f"w{n} " for n in range(count))


def ask(house: House, model: str, script: dict[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the body that was sent, its row) of one call that is answered whole."""
    body = {**chat(script), "model": model, **more}
    status, _, _, request_id = house.post(body)
    assert status == 200
    return body, house.row(request_id)


def figures(row: dict[str, Any]) -> tuple[int, int, str]:
    """What the row says of tokens."""
    return row["prompt_tokens"], row["completion_tokens"], row["source"]


def frames(*deltas: tuple[int, dict[str, Any]]) -> str:
    """A script's payload: one frame for each choice's number and delta."""
    lines = []
    for index, delta in deltas:
        choice = {"index": index, "delta": delta, "finish_reason": None}
        lines.append("data: " + json.dumps({"id": "1", "model": "m", "choices": [choice]}) + "\n\n")
    return base64.b64encode("".join([*lines, "data: [DONE]\n\n"]).encode()).decode()


# === the provider's own word ===


@pytest.mark.parametrize("asked", [True, None])
def test_usage_of_the_provider_stands(counting: House, asked: bool | None) -> None:
    """The SDK's stream is as ever: usage where it was asked for; the row has the provider's figures and no others."""
    request_id = f"sdk-{uuid.uuid4().hex[:16]}"
    script = {"tokens": 5, "prompt_tokens": 1234, "reasoning_tokens": 2}
    more: dict[str, Any] = {} if asked is None else {"stream_options": {"include_usage": True}}
    with openai.OpenAI(base_url=counting.weir.url, api_key=counting.weir.key, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                **{**chat(script), "model": "gpt-4o"}, stream=True, extra_headers={"x-request-id": request_id}, **more
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == words(5)
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([5] if asked else [])
    row = counting.row(request_id)
    assert figures(row) == (1234, 5, "provider")
    assert not row["lower_bound"]


# === streams and answers without usage ===


@pytest.mark.parametrize(
    ("model", "encoding"),
    [("quiet-4o", "o200k_base"), ("quiet-4", "cl100k_base"), ("quiet-named", "cl100k_base")],
)
@pytest.mark.parametrize("word", ["", HARD, " and so on, and", "\n"])
def test_a_stream_without_usage_is_counted(counting: House, model: str, encoding: str, word: str) -> None:
    """Prompt and completion are tiktoken's, whatever the text and however it was cut into deltas."""
    for script in ({"tokens": 23, "word": word}, {"tokens": 9, "word": word, "split": [7, 1, 30]}):
        body, row = ask(counting, model, script, stream=True)
        assert figures(row) == (
            prompt_of(body, encoding),
            oracle.count(encoding, words(script["tokens"], word)),
            "counted",
        )
        assert not row["lower_bound"]


@pytest.mark.parametrize("tokens", [3, 30_000])
def test_a_whole_answer_without_usage_is_counted(counting: House, tokens: int) -> None:
    """A JSON answer without usage is read to its end; a long one is counted beside the loop."""
    body, row = ask(counting, "quiet-4o", {"tokens": tokens, "word": "wörter 数 ", "usage": "none"})
    assert figures(row) == (prompt_of(body), oracle.count("o200k_base", words(tokens, "wörter 数 ")), "counted")


def test_a_long_line_is_counted_beside_the_loop(counting: House) -> None:
    """More text in one read than the loop may count waits, and is in the row when the stream has ended."""
    body, row = ask(counting, "quiet-4o", {"tokens": 2, "line_bytes": 200_000}, stream=True)
    assert figures(row) == (prompt_of(body), oracle.count("o200k_base", "x" * 200_000 + "w1 "), "counted")


def test_each_choice_and_each_call_is_a_text_of_its_own(counting: House) -> None:
    """With n=2 and tool calls every lane is counted by itself: tokens do not grow together across them."""

    def call(index: int, name: str, arguments: str) -> tuple[int, dict[str, Any]]:
        function = {"arguments": arguments, **({"name": name} if name else {})}
        return 0, {"tool_calls": [{"index": index, "function": function}]}

    lanes = ["Hel", "lo wor", "ld, ", "this is"], ["inter", "national", "isation", "!"]
    turns = zip(*lanes, strict=True)
    payload = frames(*((which, {"content": part}) for turn in turns for which, part in enumerate(turn)))
    _, row = ask(counting, "quiet-4o", {"payload_b64": payload}, stream=True, n=2)
    assert row["completion_tokens"] == sum(oracle.count("o200k_base", "".join(lane)) for lane in lanes)
    assert row["source"] == "counted"
    payload = frames(call(0, "get_weather", ""), call(0, "", '{"ci'), call(1, "now", "{}"), call(0, "", 'ty":"Köln"}'))
    _, row = ask(counting, "quiet-4o", {"payload_b64": payload}, stream=True)
    texts = ["get_weather", '{"city":"Köln"}', "now", "{}"]
    assert row["completion_tokens"] == sum(oracle.count("o200k_base", text) for text in texts)
    assert row["source"] == "counted"


def test_completions_and_embeddings_have_no_marks(counting: House) -> None:
    """A prompt that is text alone has the tokens of its text; token arrays are what they are."""
    said = f"@{json.dumps({'tokens': 2, 'usage': 'none'})} "
    for path, name, prompt in (
        ("completions", "prompt", said + HARD),
        ("completions", "prompt", ["two", said + HARD]),
        ("embeddings", "input", said + HARD * 900),
    ):
        status, _, _, request_id = counting.post({"model": "quiet-4o", name: prompt}, path=f"/v1/{path}")
        assert status == 200
        texts = [prompt] if isinstance(prompt, str) else prompt
        completion = oracle.count("o200k_base", words(2)) if name == "prompt" else 0
        tokens = sum(oracle.count("o200k_base", text) for text in texts)
        assert figures(counting.row(request_id)) == (tokens, completion, "counted")
    body = {"model": "quiet-4o", "prompt": [1, 2, 3], "stream": True}
    _, _, _, request_id = counting.post(body, path="/v1/completions")
    assert figures(counting.row(request_id)) == (3, oracle.count("o200k_base", words(8)), "counted")


# === streams that are cut ===


@pytest.mark.parametrize("word", ["", HARD])
def test_a_stream_cut_by_the_upstream_is_counted(counting: House, word: str) -> None:
    """What was relayed before the upstream went away is tiktoken's count of just that."""
    body, row = ask(counting, "quiet-4o", {"tokens": 30, "word": word, "close_at": 11}, stream=True)
    assert (row["termination"], row["relayed_frames"]) == ("upstream_error", 11)
    assert figures(row) == (prompt_of(body), oracle.count("o200k_base", words(11, word)), "counted")


def test_a_stream_cut_by_the_client_is_counted(counting: House) -> None:
    """The client hangs up in mid-stream: the row has the tokens of the frames that were relayed, and of no others."""
    request_id = f"gone-{uuid.uuid4().hex[:16]}"
    body = {**chat({"endless": True, "delay_ms": 5}), "model": "quiet-4o", "stream": True}

    async def story() -> int:
        async with Client(counting.weir) as client:
            await client.send(json.dumps(body).encode(), x_request_id=request_id)
            _, headers = await client.head()
            received = b""
            async for part in client.parts(headers):
                received += part
                if received.count(b"\n\n") >= 12:
                    break
            return received.count(b"\n\n")

    received = asyncio.run(story())
    row = counting.row(request_id)
    counting.upstream.wait_idle()
    assert row["termination"] == "client_gone"
    assert received <= row["relayed_frames"] <= sent_frames(counting, request_id)
    assert figures(row) == (prompt_of(body), oracle.count("o200k_base", words(row["relayed_frames"])), "counted")


def sent_frames(house: House, request_id: str) -> int:
    """How many frames the upstream says it sent of this call."""
    (asked,) = house.asked(request_id)
    (end,) = (event for event in house.upstream.events() if event["event"] == "end" and event["n"] == asked["n"])
    return int(end["frames"])


def test_a_stream_whose_worker_is_killed_is_counted(counting: House) -> None:
    """SIGKILL in mid-stream: the recovered row has the tokens of what was relayed, at least what clients received."""
    ids = [f"killed-{uuid.uuid4().hex[:12]}-{number}" for number in range(8)]
    bodies = [
        {**chat({"tokens": 4000, "delay_ms": 10, "word": HARD if n % 2 else ""}), "model": "quiet-4o", "stream": True}
        for n in range(len(ids))
    ]
    (victim,) = counting.weir.processes("worker")

    async def one(body: dict[str, Any], request_id: str, begun: asyncio.Semaphore) -> int:
        async with Client(counting.weir) as client:
            await client.send(json.dumps(body).encode(), x_request_id=request_id)
            _, headers = await client.head()
            received = b""
            try:
                async for part in client.parts(headers):
                    received += part
                    if received.count(b"\n\n") >= 5:
                        begun.release()
            except (EOFError, OSError):
                pass
            return received.count(b"\n\n")

    async def story() -> list[int]:
        begun = [asyncio.Semaphore(0) for _ in ids]
        calls = [asyncio.create_task(one(*each)) for each in zip(bodies, ids, begun, strict=True)]
        async with asyncio.timeout(120):
            for each in begun:
                await each.acquire()
        os.kill(victim, signal.SIGKILL)
        return await asyncio.gather(*calls)

    received = asyncio.run(story())
    counting.upstream.wait_idle()
    for body, request_id, frames_received, word in zip(bodies, ids, received, ["", HARD] * 4, strict=True):
        row = counting.row(request_id)
        assert row["termination"] == "crash"
        assert 5 <= frames_received <= row["relayed_frames"] <= sent_frames(counting, request_id)
        assert figures(row) == (
            prompt_of(body),
            oracle.count("o200k_base", words(row["relayed_frames"], word)),
            "counted",
        )
    wait_for("the worker to be replaced", lambda: counting.weir.processes("worker") and counting.weir.ready())


# === models of which nothing is known, and models that think ===


def test_an_unknown_model_is_estimated_by_what_its_upstream_taught(counting: House) -> None:
    """Bytes per token begin at 4 and follow the upstream's own figures for that model, and for no other."""
    _, row = ask(counting, "unknown-1", {"tokens": 40, "word": "abcdefg ", "usage": "none"})
    assert row["source"] == "estimated"
    assert row["completion_tokens"] == 80
    ratio = Ratio()
    usage = {"prompt_tokens": 1, "completion_tokens": 100, "total_tokens": 101}
    for _ in range(12):
        ask(counting, "unknown-1", {"tokens": 20, "word": "abcdefghi ", "usage": usage})
        ratio.learn(200, 100)
    assert ratio.milli < 3000
    body, row = ask(counting, "unknown-1", {"tokens": 40, "word": "abcdefg ", "usage": "none"})
    text = sum(len(message["content"]) for message in body["messages"])
    assert figures(row) == (text_tokens(text, ratio.milli) + 4, text_tokens(320, ratio.milli), "estimated")
    _, row = ask(counting, "unknown-2", {"tokens": 40, "word": "abcdefg ", "usage": "none"})
    assert row["completion_tokens"] == 80


def test_a_tokenizer_from_a_file_counts_prompts(counting: House) -> None:
    """A prompt of text has the tokens of the model's own tokenizer.json; answers are estimated, and so is the row."""
    made = tokenizers.Tokenizer.from_file(str(counting.weir.config.parent / "tokenizer.json"))
    script = f"@{json.dumps({'tokens': 40, 'word': 'abcdefg '})} "
    for text in ("one two", HARD * 200):
        body = {"model": "from-file", "prompt": script + text, "stream": True}
        _, _, _, request_id = counting.post(body, path="/v1/completions")
        expected = len(made.encode(script + text, add_special_tokens=False).ids)
        assert figures(counting.row(request_id)) == (expected, 80, "estimated")
        status, _, answer, _ = counting.post({"model": "from-file", "input": text}, path="/v1/tokenize")
        assert status == 200
        tokens = len(made.encode(text, add_special_tokens=False).ids)
        assert json.loads(answer)["tokens"] == tokens
        assert (json.loads(answer)["source"], json.loads(answer)["tokenizer"]) == ("counted", "file:tokenizer.json")


def test_a_model_that_thinks_is_a_lower_bound(counting: House) -> None:
    """What a model thought unseen is in the provider's figure and in no stream: without it the row says at least."""
    body, row = ask(counting, "quiet-thinker", {"tokens": 6}, stream=True)
    assert figures(row) == (prompt_of(body, primer=2), oracle.count("o200k_base", words(6)), "counted")
    assert row["lower_bound"]
    _, row = ask(counting, "quiet-thinker", {"tokens": 6, "reasoning_tokens": 5, "prompt_tokens": 3})
    assert figures(row) == (3, 6, "provider")
    assert not row["lower_bound"]
    shown = counting.weir.weir("usage", "--rows", "--model", "quiet-thinker").stdout
    assert f"≥{oracle.count('o200k_base', words(6))}" in shown


# === what is reserved ===


def test_a_burst_that_just_fits_passes(counting: House) -> None:
    """A prompt as large as the burst passes; where the burst is one token less it can never pass, and is told so."""
    body = {"messages": [{"role": "user", "content": "x" * 8 + " and" * 20 + " so on"}]}
    tokens = prompt_of(body)
    body["messages"][0]["content"] += " and" * (BURST_FITS - tokens)
    assert prompt_of(body) == BURST_FITS
    assert counting.post({**body, "model": "burst-fits"})[0] == 200
    status, headers, answer, _ = counting.post({**body, "model": "burst-short"})
    error = json.loads(answer)["error"]
    assert (status, error["code"], headers["x-should-retry"]) == (429, "request_too_large", "false")
    assert f"{BURST_FITS} tokens against at most {BURST_FITS - 1}" in error["message"]
    assert "about" not in error["message"]


def test_what_is_reserved_is_the_prompt_and_the_answers_bound(counting: House) -> None:
    """While one call holds its part of a burst, another passes with exactly the rest, and not with one token more."""

    async def story() -> list[int]:
        held = {**chat({"stall_at": 1}), "model": "burst-1000", "stream": True, "max_tokens": 500}
        rest = {**chat({"tokens": 1}), "model": "burst-1000"}
        left = 1000 - prompt_of(held) - 500 - prompt_of(rest)
        statuses = []
        async with Client(counting.weir) as first, Client(counting.weir) as second:
            await first.send(json.dumps(held).encode())
            assert (await first.head())[0] == 200
            for answer in (left + 1, left):
                statuses.append((await second.call(json.dumps({**rest, "max_tokens": answer}).encode())).status)
        return statuses

    assert asyncio.run(story()) == [429, 200]


def test_a_client_that_leaves_while_its_prompt_is_counted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt is counted in a thread before anything is held: who hangs up then has no row and holds nothing."""
    begun, go = Event(), Event()
    count = Exact.prompt

    def slow(self: Exact, *asked: Any) -> Any:
        begun.set()
        go.wait(100)
        return count(self, *asked)

    async def story() -> None:
        async with inside(tmp_path, tenant={"limits": {"concurrency": 1}}) as weir:
            body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "word " * 20_000}]}
            monkeypatch.setattr(Exact, "prompt", slow)
            async with Client(weir) as client:  # type: ignore[arg-type]
                await client.send(json.dumps(body).encode())
                async with asyncio.timeout(120):
                    while not begun.is_set():
                        await asyncio.sleep(0.01)
                assert weir.front.requests == 1
            async with asyncio.timeout(120):
                while weir.front.requests:
                    await asyncio.sleep(0.01)
            assert weir.epoch.writer.open_slots == 0
            assert weir.epoch.arena.held_total() == 0
            go.set()
            monkeypatch.setattr(Exact, "prompt", count)
            async with Client(weir) as client:  # type: ignore[arg-type]
                body["messages"] = chat({"tokens": 1})["messages"]
                assert (await client.call(json.dumps(body).encode())).status == 200
            assert len([event for event in weir.upstream.ledger.events if event["event"] == "request"]) == 1

    try:
        asyncio.run(story())
    finally:
        go.set()


def test_estimates_are_what_they_were() -> None:
    """An estimate is text by its bytes, and constants for what is no text."""
    from proxy._scan import peek

    body = json.dumps(
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "12345"},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
            ],
        }
    ).encode()
    facts = peek(body)
    assert fixed_tokens(facts) == 2 * 4 + 765
    assert prompt_tokens(facts) == 2 + 2 * 4 + 765
    assert prompt_tokens(facts, 1000) == 5 + 2 * 4 + 765
