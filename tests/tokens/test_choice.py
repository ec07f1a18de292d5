"""Which tokenizer a model of the policy has, by what decides in turn; `weir explain` and `weir tokens` say the same."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy._scan import peek
from proxy.bounds import TEXT_BYTES_INLINE, TOKENIZERS_MAX
from proxy.cli import main
from proxy.policy.compile import compile_policy, examine
from proxy.policy.effective import find_model
from proxy.tokens import families
from proxy.tokens.remembered import Remembered
from proxy.tokens.tokenizer import Choice, Estimated, Exact, Tokenizer, Tokenizers, choose, tokenizer_of
from tests.policy.gallery import EXAMPLE
from tests.tokens import oracle
from tests.world.gateway import Gateway

COST_STRING = 8  # WEIR_COST_STRING in _prompt.h
MODELS: dict[str, dict[str, Any]] = {
    "gpt-4o": {},
    "alias": {"model": "gpt-4-0613"},
    "gpt-4": {"model": "deployment-7"},
    "both": {"targets": [{"upstream": "mock", "model": "my-own"}, {"upstream": "mock", "model": "o3-mini"}]},
    "idle": {"targets": [{"upstream": "mock", "model": "gpt-4", "weight": 0}, {"upstream": "mock", "model": "gpt-4o"}]},
    "named": {"family": "gpt-4", "model": "gpt-4o"},
    "written": {"tokenizer": "cl100k_base"},
    "over": {"tokenizer": "cl100k_base", "model": "gpt-4o"},
    "plain": {"tokenizer": "estimate", "model": "gpt-5"},
    "local": {},
}
CHOSEN = {
    "gpt-4o": ("o200k_base", "gpt-4o", False, "by the name gpt-4o"),
    "alias": ("cl100k_base", "gpt-4", False, "by the name gpt-4-0613"),
    "gpt-4": ("cl100k_base", "gpt-4", False, "by the name gpt-4"),
    "both": ("o200k_base", "o-series", True, "by the name o3-mini"),
    "idle": ("o200k_base", "gpt-4o", False, "by the name gpt-4o"),
    "named": ("cl100k_base", "gpt-4", False, "named in its entry"),
    "written": ("cl100k_base", "", False, "weir.yaml"),
    "over": ("cl100k_base", "gpt-4o", False, "weir.yaml"),
    "plain": ("estimate", "", True, "weir.yaml"),
    "local": ("estimate", "", False, "no family of models is known by its names"),
    "gpt-5-nano-2025-08-07": ("o200k_base", "gpt-5-nano", True, "by the name gpt-5-nano-2025-08-07"),  # through "*"
    "llama-4": ("estimate", "", False, "no family of models is known by its names"),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with models of all kinds."""
    models = {
        name: {"unpriced": True, **({} if "targets" in entry else {"upstream": "mock"}), **entry}
        for name, entry in MODELS.items()
    }
    return Gateway(tmp_path_factory.mktemp("choice"), "http://127.0.0.1:9/v1", settings={"models": models}).config


@pytest.mark.parametrize("name", CHOSEN)
def test_what_decides(config: Path, name: str) -> None:
    """The entry's own words first, then the targets that take calls in their order, then the public name."""
    model = find_model(compile_policy(config), name)
    assert model is not None
    kind, family, reasoning, reason = CHOSEN[name]
    choice = choose(model)
    assert (choice.kind, choice.family, choice.reasoning) == (kind, family, reasoning)
    assert reason in choice.reason
    made = tokenizer_of(choice)
    assert isinstance(made, Estimated if kind == "estimate" else Exact)
    assert (made.name, made.reasoning, made.encoding is None) == (kind, reasoning, kind == "estimate")


def test_a_ratio_outlives_a_reload(config: Path) -> None:
    """What was learnt of a model stays while its tokenizer does, also when its line in the file moves."""
    policy = compile_policy(config)
    local, over = (find_model(policy, name) for name in ("local", "plain"))
    assert local is not None
    assert over is not None
    made = Tokenizers()
    first = made.of(local, "acme")
    assert made.of(msgspec.structs.replace(local, source="weir.yaml:99"), "acme") is first
    moved = msgspec.structs.replace(over, tokenizer_source="weir.yaml:99")
    assert made.of(moved, "acme") is made.of(over, "acme")
    assert made.of(msgspec.structs.replace(local, tokenizer="o200k_base"), "acme") is not first


def test_a_ratio_is_a_tenants_own(config: Path) -> None:
    """One tenant's calls teach nothing for another's, and names that one invents make no other forget."""
    policy = compile_policy(config)
    local = find_model(policy, "local")
    assert local is not None
    made = Tokenizers()
    acme, other = made.of(local, "acme"), made.of(local, "other")
    for _ in range(100):
        acme.learn(2000, 1000)
    assert acme.bytes_per_token_milli < 2100
    assert other.bytes_per_token_milli == 4000
    for number in range(3 * TOKENIZERS_MAX):
        invented = find_model(policy, f"invented-{number}")
        assert invented is not None
        made.of(invented, "other")
    assert len(made._known) == 1 + TOKENIZERS_MAX
    assert made.of(local, "acme") is acme
    assert made.of(local, "other") is not other


def test_what_is_remembered_is_bounded() -> None:
    """Each tenant has so many things, its youngest; of too many tenants the one that rested longest is forgotten."""
    made: Remembered[str, int] = Remembered(2, tenants_max=2)
    for number, name in enumerate("abab"):
        made.put("first", name, number)
    assert (made.get("first", "a"), made.get("first", "b"), len(made)) == (2, 3, 2)
    made.get("first", "a")
    made.put("first", "c", 9)
    assert (made.get("first", "a"), made.get("first", "b")) == (2, None)
    made.put("second", "a", 7)
    made.get("first", "a")
    made.put("third", "a", 8)
    assert (made.get("first", "a"), made.get("second", "a"), made.get("third", "a")) == (2, None, 8)


def test_explain_says_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The operator sees what counts a model's tokens and why."""
    lines = {}
    for name in CHOSEN:
        assert main(["explain", "--tenant", "acme", "--model", name, "--config", str(config)]) == 0
        (lines[name],) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("tokens "))
    assert lines["alias"] == "tokens    cl100k_base, family gpt-4: by the name gpt-4-0613"
    assert "o200k_base, family o-series, may think in tokens that it never sends" in lines["both"]
    assert lines["local"] == "tokens    estimated from bytes: no family of models is known by its names"


def test_targets_that_count_differently_are_doubtful(tmp_path: Path) -> None:
    """A model half of whose calls would be counted wrongly is pointed out, until it names its tokenizer."""
    targets = [{"upstream": "mock", "model": "gpt-4o"}, {"upstream": "mock", "model": "gpt-4"}]
    for number, more in enumerate(({}, {"tokenizer": "o200k_base"}, {"family": "gpt-4"})):
        models = {"mixed": {"targets": targets, "unpriced": True, **more}}
        directory = tmp_path / str(number)
        written = Gateway(directory, "http://127.0.0.1:9/v1", settings={"models": models})
        examined = examine(written.config, {})
        assert examined.policy is not None
        said = [str(warning) for warning in examined.warnings if "count differently" in str(warning)]
        assert len(said) == (0 if more else 1)
        if said:
            assert (
                "models.mixed: its targets count differently, gpt-4o in o200k_base and gpt-4 in cl100k_base" in said[0]
            )


def test_an_encoding_without_a_family_counts_text_and_estimates_chats() -> None:
    """What the marks around messages are is not known then, and the sum says so."""
    made = tokenizer_of(Choice("cl100k_base"))
    for body, endpoint, expected in (
        ({"model": "m", "input": "Grüße 你好"}, "embeddings", (oracle.count("cl100k_base", "Grüße 你好"), "counted")),
        ({"model": "m", "prompt": [1, 2, 3]}, "completions", (3, "counted")),
        ({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, "chat.completions", (2 + 4, "estimated")),
    ):
        raw = json.dumps(body, ensure_ascii=False).encode()
        assert made.prompt(raw, peek(raw), endpoint, "acme") == expected


def now(made: Tokenizer, body: dict[str, Any], endpoint: str = "chat.completions", tenant: str = "acme") -> bool:
    """Whether a prompt is counted on the loop; then it has the same tokens there as aside."""
    raw = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    facts = peek(raw)
    found = made.prompt_now(raw, facts, endpoint, tenant)
    assert found in (None, made.prompt(raw, facts, endpoint, f"another than {tenant}"))
    return found is not None


def test_long_texts_are_not_for_the_loop() -> None:
    """What an exact tokenizer counts on the loop is bounded; an estimate costs the same whatever the length."""
    exact, guess = tokenizer_of(Choice("o200k_base")), tokenizer_of(Choice("estimate"))
    for room in (0, -1):
        body = {"model": "m", "input": "x" * (TEXT_BYTES_INLINE - COST_STRING - room)}
        assert now(exact, body, "embeddings") is (room == 0)
        assert now(guess, body, "embeddings")


STRINGS = {"role": "", "content": [""] * 10}
CALLS = {"role": "", "tool_calls": [{"function": {"name": ""}}] * 10}
PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAg"
IMAGES = {"role": "", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}
FUNCTION = {"name": "", "parameters": {"properties": {"a": {"enum": [[]] * 10}}}}


@pytest.mark.parametrize(
    ("one", "many"),
    [
        (lambda n: {"messages": [STRINGS] * n}, 200),
        (lambda n: {"messages": [CALLS] * n}, 100),
        (lambda n: {"messages": [IMAGES] * n}, 10),
        (lambda n: {"messages": [], "tools": [{"type": "function", "function": FUNCTION}] * n}, 50),
        (lambda n: {"messages": [], "functions": [FUNCTION] * n}, 50),
        (lambda n: {"messages": [], "response_format": {"json_schema": {"schema": [[]] * n}}}, 2000),
        (lambda n: {"messages": [], "tool_choice": [{}] * n}, 2000),
        (lambda n: {"messages": [{"role": "system", "content": "x" * n}], "tools": [{"name": "a"}]}, 7000),
    ],
)
def test_nothing_is_for_the_loop_without_bound(one: Callable[[int], dict[str, Any]], many: int) -> None:
    """A few of anything are counted on the loop; many are not, though none of them has a byte of text."""
    made = tokenizer_of(Choice("o200k_base", family="gpt-4o"))
    assert now(made, one(1), tenant=f"few {many}")
    for times in (1, 10):
        assert not now(made, one(many * times), tenant=f"many {many}")


def test_known_tools_are_for_the_loop() -> None:
    """Definitions that were counted for a tenant cost the next call nothing; for another tenant's they are new."""
    made = tokenizer_of(Choice("o200k_base", family="gpt-4o"))
    many = [{"type": "function", "function": {"name": f"f{n}", "description": "Does."}} for n in range(100)]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "tools": many}
    raw = json.dumps(body, separators=(",", ":")).encode()
    assert not now(made, body, tenant="first")
    made.prompt(raw, peek(raw), "chat.completions", "first")
    assert now(made, body, tenant="first")
    assert not now(made, body, tenant="second")
    body["messages"][0]["content"] = "x" * TEXT_BYTES_INLINE
    assert not now(made, body, tenant="first")


# === weir tokens ===


def run(capsys: pytest.CaptureFixture[str], *words: str, config: Path = EXAMPLE) -> tuple[int, str, str]:
    """(exit code, output, errors) of `weir tokens`."""
    code = main(["tokens", *words, "--config", str(config)])
    return code, *capsys.readouterr()


def test_the_command_counts_a_text_a_file_and_standard_input(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the text comes from, it has the same tokens; no Weir runs."""
    text = "Grüße, 你好\n\ndon't"
    expected = oracle.count("o200k_base", text)
    path = tmp_path / "text.txt"
    path.write_text(text, "utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for words in ((text,), ("--file", str(path)), ()):
        code, out, _ = run(capsys, "--model", "gpt-4o", *words, config=config)
        assert (code, out) == (0, f"{expected} tokens, counted by o200k_base (by the name gpt-4o)\n")
    code, out, _ = run(capsys, "--encoding", "cl100k_base", text)
    assert (code, out) == (0, f"{oracle.count('cl100k_base', text)} tokens, counted by cl100k_base\n")
    assert run(capsys, "--encoding", "cl100k_base", "a")[1] == "1 token, counted by cl100k_base\n"
    assert run(capsys, "--model", "local", "12345", config=config)[1].startswith("2 tokens, estimated from its bytes (")
    code, out, _ = run(capsys, "--model", "local", "12345", "--json", config=config)
    assert json.loads(out) == {
        "object": "tokens",
        "model": "local",
        "tokens": 2,
        "source": "estimated",
        "tokenizer": "estimate",
    }


def test_the_command_counts_a_request(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A body is counted as its call would be reserved."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
    code, out, _ = run(capsys, "--model", "gpt-4o", "--request", json.dumps(body), config=config)
    assert (code, out.split()[0]) == (0, "8")  # 3 for the message, its role, its word, 3 for the answer's start


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "gpt-4o", "--request", "{"], "the body is no request: "),
        (["--model", "gpt-4o", "--request", '{"model":"gpt-4o"}'], "one of messages, prompt and input is expected"),
        (["--encoding", "o200k_base", "--request", "{}"], "give --model in place of --encoding"),
        (["--model", "gpt-4o", "a", "--file", "b"], "a text and --file; give one of the two"),
        (["--model", "gpt-4o", "--file", "/nowhere/text"], "/nowhere/text cannot be read: No such file or directory"),
        (["--model", "gpt-4o", "a\udcff"], "the text is not UTF-8: byte 1 begins no character"),
    ],
)
def test_the_command_says_what_is_wrong(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    """One sentence on standard error, exit code 2."""
    code, out, err = run(capsys, *words, config=config)
    assert (code, out) == (2, "")
    assert err.startswith("weir tokens: ")
    assert sentence in err


def test_the_command_knows_only_the_policys_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no entry serves is no model; a configuration that is wrong is shown as `weir check` shows it."""
    written = Gateway(tmp_path, "http://127.0.0.1:9/v1")
    (written.config / "weir.yaml").write_text(
        "upstreams: {mock: {url: http://127.0.0.1:9/v1}}\nmodels: {only: {upstream: mock, unpriced: true}}\n"
    )
    code, _, err = run(capsys, "--model", "gpt-4o", "a", config=written.config)
    assert (code, "no entry in models serves gpt-4o" in err) == (2, True)
    (written.config / "weir.yaml").write_text("upstreams: 5\n")
    code, _, err = run(capsys, "--model", "gpt-4o", "a", config=written.config)
    assert (code, "weir.yaml:1: upstreams: expected a mapping" in err) == (2, True)


def test_every_family_can_be_named() -> None:
    """A family that the data names makes a tokenizer that counts."""
    raw = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
    for name, family in families.known().by_name.items():
        made = tokenizer_of(Choice(family.encoding, family=name))
        assert made.prompt(raw, peek(raw), "chat.completions", "acme")[0] >= 2
