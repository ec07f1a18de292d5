"""`weir check` and `weir explain`: what they print is what decides."""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path
from types import ModuleType
from typing import Annotated

import msgspec
import pytest

from proxy import cli, settings
from proxy.call import Principal
from proxy.identity.actor import operator
from proxy.policy.compile import compile_policy
from proxy.policy.effective import effective
from proxy.policy.patterns import plain, whole
from proxy.store.store import Store, migrate
from proxy.verbs import check, explain
from proxy.verbs.keys import new_row
from tests.policy.gallery import BASE, EXAMPLE, VECTORS, lay_out, note


def run(verb: ModuleType, *words: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    code = verb.run(parser.parse_args(words))
    assert isinstance(code, int)
    return code


def test_check_prints_every_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Should print the problems of all files at once and exit 1."""
    case = VECTORS / "bad" / "all-at-once"
    lay_out(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(check) == 1
    assert capsys.readouterr().out == note(case, "expected.txt")
    assert len(note(case, "expected.txt").splitlines()) >= 8


def test_check_sums_a_good_configuration_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Should print one line and exit 0; doubts go to standard error."""
    monkeypatch.delenv("KEY", raising=False)
    config = lay_out(VECTORS / "good" / "doubts", tmp_path)
    assert run(check, "--config", str(config)) == 0
    out, err = capsys.readouterr()
    version = compile_policy(config, {}).version
    assert out == f"{config}: 1 tenant, 1 plan, 2 models, 1 upstream: good; version {version}\n"
    assert err.count("warning: ") == 3


def test_explain_shows_what_effective_decides(capsys: pytest.CaptureFixture[str]) -> None:
    """Should print each limit, target and price of the very verdict that a request gets."""
    assert run(explain, "--tenant", "acme", "--model", "gpt-4o", "--config", str(EXAMPLE)) == 0
    out = capsys.readouterr().out
    verdict = effective(compile_policy(EXAMPLE), Principal("acme", "<each>"), "gpt-4o", "chat.completions")
    for limit in verdict.limits:
        assert f"{limit.scope}: {limit.kind} {limit.limit}  ({limit.source})" in out
    assert verdict.model is not None
    for target in verdict.model.targets:
        assert target.source in out
    assert "prompt 2.5, cached 1.25, completion 10 dollars per million tokens, version 2025-06" in out
    assert f"{EXAMPLE}/prices.yaml:16" in out


def test_explain_asks_the_function_that_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Should have no judgement of its own: another verdict of `effective` is another answer."""
    calls = []

    def other(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return explain.Effective("model_not_found", "m", "because a test says so", "here:1")

    monkeypatch.setattr(explain, "effective", other)
    assert run(explain, "--tenant", "acme", "--model", "gpt-4o", "--config", str(EXAMPLE)) == 1
    assert "refused, 404 model_not_found: because a test says so  (here:1)" in capsys.readouterr().out
    assert len(calls) == 1
    from proxy import authorise

    assert authorise.effective is effective


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--tenant", "acme", "--model", "demo"], "404 model_not_found: the tenant acme does not list the model demo"),
        (
            ["--tenant", "nobody", "--model", "demo"],
            "401 invalid_api_key: the key's tenant nobody is not in the policy",
        ),
        (
            ["--tenant", "acme", "--model", "gpt-4o", "--endpoint", "completions"],
            "403 endpoint_not_allowed: the tenant acme does not list the endpoint completions",
        ),
    ],
)
def test_explain_refusals(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Should say the status, the code and the level that refuses, and exit 1."""
    assert run(explain, *words, "--config", str(EXAMPLE)) == 1
    assert f"verdict   refused, {line}" in capsys.readouterr().out


def test_explain_takes_the_endpoint_where_a_model_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    """Should not refuse an embedding model for an endpoint that nobody asked for."""
    assert run(explain, "--tenant", "acme", "--model", "text-embedding-3-small", "--config", str(EXAMPLE)) == 0
    assert "endpoint  embeddings" in capsys.readouterr().out


def test_explain_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Should find a key by secret, by id and from standard input, and see that it narrows, expired or is revoked."""
    config = lay_out(BASE, tmp_path)
    words = ("--model", "small", "--config", str(config))
    process = settings.load(config, {})
    process.data_dir.mkdir()

    async def prepare() -> tuple[str, str, str]:
        await migrate(process.database)
        secret, row = new_row(process, "acme", "ci", models=["large"])
        _, expired = new_row(process, "acme", "old", seconds=-1)
        store = Store.open(process.database)
        try:
            await store.insert_key(row, operator())
            await store.insert_key(expired, operator())
        finally:
            await store.close()
        return secret, row.key_id, expired.key_id

    async def revoke(key_id: str) -> None:
        store = Store.open(process.database)
        try:
            await store.revoke_key(key_id, 1, operator())
        finally:
            await store.close()

    secret, key_id, expired_id = asyncio.run(prepare())
    for word in (secret, key_id):
        assert run(explain, "--key", word, *words) == 1
        out = capsys.readouterr().out
        assert f"key       {key_id} of tenant acme" in out
        assert "the key does not list the model small" in out
        assert secret not in out
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", Lines(secret))
        assert run(explain, "--key", "-", *words) == 1
    capsys.readouterr()
    assert run(explain, "--key", expired_id, *words) == 1
    assert "401 expired_api_key: the key has expired" in capsys.readouterr().out
    asyncio.run(revoke(key_id))
    assert run(explain, "--key", secret, *words) == 1
    assert "401 invalid_api_key: the key is revoked" in capsys.readouterr().out
    assert run(explain, "--key", secret[:-1] + ("0" if secret[-1] != "0" else "1"), *words) == 2
    assert "checksum" in capsys.readouterr().err
    assert run(explain, "--key", "key_unknown", *words) == 2
    assert "no such key" in capsys.readouterr().err


class Lines:
    """A standard input of one line."""

    def __init__(self, line: str) -> None:
        self._line = line

    def readline(self) -> str:
        return self._line + "\n"


def test_explain_needs_a_good_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Should exit 2 with the problems, since nothing decides yet."""
    config = lay_out(VECTORS / "bad" / "meaning-no-price", tmp_path)
    assert run(explain, "--tenant", "acme", "--model", "small", "--config", str(config)) == 2
    assert "no price" in capsys.readouterr().err


def test_the_help_lists_what_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb stands in it with a sentence; the parts that the supervisor starts do not."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [verb for verb, text in cli.VERBS.items() if f"{verb:<10}{text}" not in shown] == []
    assert "SUPPRESS" not in shown
    assert not {line.split()[0] for line in shown.splitlines() if line.strip()} & set(cli.PARTS)


@pytest.mark.parametrize("text", ["a\n", "a\n\n", "\n", "a b", "ab", ""])
def test_a_pattern_is_of_the_whole_text(text: str) -> None:
    """A line's end after the last letter is no part of a name, before which Python's `$` stands too."""
    assert re.search(whole("a+"), text) is None
    assert re.search(whole("a+"), "aa") is not None
    with pytest.raises(msgspec.ValidationError) as found:
        msgspec.convert("b", Annotated[str, msgspec.Meta(pattern=whole("a+"))])
    assert plain(str(found.value)).endswith("'^a+$'")
