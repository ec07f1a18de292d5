"""Secrets stay outside: no value in a snapshot, in settings' words or in a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import bounds, settings
from proxy.policy.compile import compile_policy, examine
from proxy.policy.secrets import SecretMissing, Unset, resolve, substitute
from tests.policy.gallery import BASE, lay_out

SECRET = "sk-do-not-tell-1234567890"


def test_the_snapshot_holds_references_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should carry `${NAME}` and never what it stands for, by either form of reference."""
    config = lay_out(BASE, tmp_path)
    held = tmp_path / "upstream.key"
    held.write_text(SECRET + "\n")
    monkeypatch.setenv("UPSTREAM_KEY", SECRET)
    monkeypatch.setenv("PEPPER", SECRET)
    for reference in ("${UPSTREAM_KEY}", "${UPSTREAM_KEY:-}", f"file:{held}"):
        text = (BASE / "weir.yaml").read_text().replace("/v1\n", f"/v1\n    key: {reference}\n")
        (config / "weir.yaml").write_text(text + "pepper: ${PEPPER}\n")
        policy = compile_policy(config)
        raw = policy.encode()
        assert SECRET.encode() not in raw
        assert reference.encode() in raw
        assert SECRET not in repr(policy)
        assert resolve(policy.upstreams["main"].key or "") == SECRET.encode()


def test_a_secret_in_a_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    """Should say that a secret stands there without saying it again, wherever one could be written."""
    config = lay_out(BASE, tmp_path)
    base = (BASE / "weir.yaml").read_text()
    for text in (
        base.replace("/v1\n", f"/v1\n    key: {SECRET}\n"),
        base.replace("/v1\n", f"/v1\n    key: ${{KEY:-{SECRET}}}\n"),
        base.replace("http://127", f"http://u:{SECRET}@127"),
        base + f"pepper: {SECRET}\n",
        base + f"database: postgresql://weir:{SECRET}@db/weir\n",
        base + f"database: {SECRET}\n",
        base + f"redis: redis://:{SECRET}@redis/0\n",
        base + "workers: ${NUMBER}\n",
        base + "log: {requests: '${NUMBER}'}\n",
    ):
        (config / "weir.yaml").write_text(text)
        problems = examine(config, {"NUMBER": SECRET}).problems
        assert len(problems) == 1
        assert SECRET not in str(problems[0])


def test_passwords_of_addresses_are_masked(tmp_path: Path) -> None:
    """Should use the password and show stars."""
    config = lay_out(BASE, tmp_path)
    whole = tmp_path / "redis.url"
    whole.write_text(f"redis://:{SECRET}@redis/0")
    extra = f"database: postgresql://weir:${{DB}}@db/weir\nredis: file:{whole}\n"
    (config / "weir.yaml").write_text((BASE / "weir.yaml").read_text() + extra)
    process = settings.load(config, {"DB": SECRET})
    assert process.database == f"postgresql://weir:{SECRET}@db/weir"
    assert process.redis == f"redis://:{SECRET}@redis/0"
    assert SECRET not in repr(process)
    assert "postgresql://weir:***@db/weir" in repr(process)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${A}", "1"),
        ("${A}-${B:-two}", "1-two"),
        ("${EMPTY:-x}", "x"),
        ("${B:-}", ""),
        ("$${A}", "${A}"),
        ("$A $ {A}", "$A $ {A}"),
    ],
)
def test_substitution(text: str, value: str) -> None:
    """Should replace variables once, take an empty one as unset, and leave everything else."""
    assert substitute(text, {"A": "1", "EMPTY": "", "C": "${A}"}) == value


@pytest.mark.parametrize("text", ["${B}", "${EMPTY}", "${1A}", "${A", "${A:+x}", "${}"])
def test_substitution_that_cannot_be(text: str) -> None:
    """Should raise with a sentence rather than pass an unset or odd variable on."""
    with pytest.raises(Unset, match=r"\$\{"):
        substitute(text, {"A": "1", "EMPTY": ""})


def test_resolving(tmp_path: Path) -> None:
    """Should read a variable or a file, take off one line end, and refuse what cannot be a header."""
    held = tmp_path / "key"
    held.write_bytes(b"abc\r\n")
    assert resolve(f"file:{held}") == b"abc"
    assert resolve("${K}", {"K": "abc"}) == b"abc"
    assert resolve("${K:-}", {}) == b""
    for content, reason in (
        (b"", "is empty"),
        (b"a\nb\n", "more than one line"),
        (b"x" * (bounds.SECRET_BYTES_MAX + 1), "longer than"),
    ):
        held.write_bytes(content)
        with pytest.raises(SecretMissing, match=reason):
            resolve(f"file:{held}")
    with pytest.raises(SecretMissing, match="is not set"):
        resolve("${K}", {})
    with pytest.raises(SecretMissing, match="cannot be read"):
        resolve(f"file:{tmp_path}/absent")
    with pytest.raises(SecretMissing) as raised:
        resolve(SECRET)
    assert SECRET not in str(raised.value)
