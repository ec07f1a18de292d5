"""POST /v1/tokenize: the count that a call would be reserved by, for whoever may call, and at no cost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.journey.calling import keys_verb
from tests.journey.conftest import House, chat
from tests.tokens import oracle

PATH = "/v1/tokenize"
TEXT = "Grüße, 你好 and don't panic! 🇩🇪"


def ask(house: House, body: Any, **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, answer, headers)."""
    status, headers, answer, _ = house.post(body, path=PATH, **more)
    return status, json.loads(answer), headers


@pytest.mark.parametrize(
    ("model", "encoding"), [("gpt-4o", "o200k_base"), ("quiet-4", "cl100k_base"), ("gpt-oss-20b", "o200k_base")]
)
@pytest.mark.parametrize("text", [TEXT, "", TEXT * 3000])
def test_text_is_counted(counting: House, model: str, encoding: str, text: str) -> None:
    """A text, or a list of them, has tiktoken's tokens, however long it is."""
    name = "o200k_harmony" if model.startswith("gpt-oss") else encoding
    for given, expected in ((text, oracle.count(encoding, text)), ([text, "b"], oracle.count(encoding, text) + 1)):
        status, answer, headers = ask(counting, {"model": model, "input": given})
        assert status == 200
        assert answer == {
            "object": "tokens",
            "model": model,
            "tokens": expected,
            "source": "counted",
            "tokenizer": name,
        }
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"]


def test_a_request_is_counted_as_it_would_be_reserved(counting: House) -> None:
    """The body of a call, tools and all, has the same tokens here as in the row that the call then gets."""
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}},
        },
    }
    body = {**chat({"tokens": 1}), "model": "quiet-4o", "tools": [tool], "stream": True, "temperature": 0.5}
    _, answer, _ = ask(counting, body)
    _, _, _, request_id = counting.post(body)
    row = counting.row(request_id)
    assert (answer["tokens"], answer["source"]) == (row["prompt_tokens"], row["source"])
    _, plain, _ = ask(counting, {"model": "quiet-4o", "prompt": TEXT})
    assert plain["tokens"] == oracle.count("o200k_base", TEXT)


def test_what_is_not_known_is_estimated(counting: House) -> None:
    """A model without a tokenizer is answered by bytes, and the answer says so."""
    status, answer, _ = ask(counting, {"model": "unknown-2", "input": "12345678901"})
    assert status == 200
    assert (answer["tokens"], answer["source"], answer["tokenizer"]) == (3, "estimated", "estimate")


def test_it_costs_nothing(counting: House) -> None:
    """No row, no call upstream, nothing held, and nothing taken from the limits of calls."""
    rows, asked = len(counting.weir.rows()), len(counting.upstream.events())
    for _ in range(5):
        assert ask(counting, {"model": "burst-fits", "input": "a b c"})[0] == 200
    assert counting.weir.held() == (0, 0)
    status, headers, _, request_id = counting.post({**chat({"tokens": 1}), "model": "burst-1000", "max_tokens": 1})
    assert status == 200
    before = int(headers["x-ratelimit-remaining-tokens"])
    for _ in range(5):
        assert ask(counting, {"model": "burst-1000", "input": "word " * 300})[0] == 200
    status, headers, _, _ = counting.post({**chat({"tokens": 1}), "model": "burst-1000", "max_tokens": 1})
    assert status == 200
    # Both calls reserve the same and are settled by the same three words: nothing else was taken in between.
    row = counting.row(request_id)
    assert before - int(headers["x-ratelimit-remaining-tokens"]) == row["prompt_tokens"] + row["completion_tokens"]
    counting.upstream.wait_idle()
    assert sum(event["event"] == "request" for event in counting.upstream.events()[asked:]) == 2
    assert len(counting.weir.rows()) <= rows + 2


def test_questions_have_a_limit_of_their_own(counting: House) -> None:
    """As many a minute as calls, and no more; the calls themselves have their own still whole."""
    said = [ask(counting, {"model": "twice", "input": "a"}) for _ in range(3)]
    assert [status for status, _, _ in said] == [200, 200, 429]
    error, headers = said[2][1]["error"], said[2][2]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
    assert (headers["x-should-retry"], int(headers["retry-after"]) > 0) == ("true", True)
    assert [counting.post({**chat({"tokens": 1}), "model": "twice"})[0] for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"model": "gpt-4o"}, "input", "it has none"),
        ({"model": "gpt-4o", "input": None}, "input", "it has none"),
        ({"model": "gpt-4o", "input": "a", "messages": []}, "input", "it has messages and input"),
        ({"model": "gpt-4o", "input": {"text": "a"}}, "input", "input must be text or a list"),
        ({"model": "gpt-4o", "input": 5}, "input", "input must be text or a list"),
        ({"model": "gpt-4o", "messages": "hello"}, "messages", "messages must be a list"),
        ({"input": "a"}, "model", "names no model"),
        (b'{"model": "gpt-4o", "input": "a"', None, "not a valid JSON object"),
    ],
)
def test_bodies_that_ask_nothing(counting: House, body: Any, param: str | None, words: str) -> None:
    """A body without a prompt, or with two, is refused in OpenAI's shape, and told what would be right."""
    status, answer, headers = ask(counting, body)
    error = answer["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert headers["x-should-retry"] == "false"


def test_it_needs_a_key_that_may_use_the_model(counting: House) -> None:
    """Without a key 401; a model that the key may use at no endpoint does not exist; one endpoint is enough."""
    body = {"model": "gpt-4o", "input": "a"}
    assert ask(counting, body, key="")[0] == 401
    narrow = keys_verb(counting.weir, "create", "--tenant", "acme", "--endpoint", "embeddings", "--model", "gpt-4o")[
        "key"
    ]
    assert ask(counting, body, key=narrow)[0] == 200
    status, answer, _ = ask(counting, {**body, "model": "quiet-4o"}, key=narrow)
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_other_methods_and_bodies_without_end(counting: House) -> None:
    """It is a POST, of JSON, within the bounds of every body."""
    answer = counting.raw(b"GET /v1/tokenize HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405")
    assert ask(counting, b"a=b", content_type="text/plain")[0] == 415
    assert ask(counting, {"model": "gpt-4o", "input": "a"}, content_length=str(1 << 30))[0] == 413
