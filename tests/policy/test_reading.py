"""No file, however broken, makes the reader raise; what is written is read as what it says."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import bounds
from proxy.policy import schema
from proxy.policy.load import read_all
from proxy.policy.problems import Problem
from proxy.policy.shape import shape
from proxy.policy.text import parse
from tests.policy.gallery import BASE, cases, lay_out

SCHEMAS = (schema.WeirFile, schema.PlansFile, schema.PricesFile, schema.TenantFile)
SEEDS = [path.read_bytes() for case in [BASE, *cases("good"), *cases("bad")] for path in case.rglob("*.yaml")]


def read(raw: bytes, schema_type: type) -> tuple[object, list[Problem]]:
    problems: list[Problem] = []
    tree = parse("x.yaml", raw, problems)
    value = None if tree is None else shape("x.yaml", tree, schema_type, {}, problems).value
    return value, problems


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of the gallery with one stretch replaced."""
    seed = draw(st.sampled_from(SEEDS))
    start = draw(st.integers(0, len(seed)))
    end = draw(st.integers(start, min(len(seed), start + 20)))
    patch = draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b"\t", b": ", b"- ", b"&a ", b"*a", b"{", b"[", b"~", b"\n"]))
    )
    return seed[:start] + patch + seed[end:]


@settings(max_examples=400, deadline=None, print_blob=True)
@given(st.one_of(st.binary(max_size=200), damaged()), st.sampled_from(SCHEMAS))
def test_any_bytes_give_a_value_or_a_problem(raw: bytes, schema_type: type) -> None:
    """Should never raise, and never return nothing without saying why, at a line that the file has."""
    value, problems = read(raw, schema_type)
    assert value is not None or problems
    lines = raw.count(b"\n") + raw.count(b"\r") + 1
    for problem in problems:
        assert 1 <= problem.line <= lines + raw.count(b"\xc2\x85") + raw.count(b"\xe2\x80")
        assert problem.sentence
    if value is not None:
        # The walker checks what msgspec would check: what it accepts, msgspec reads back as the same value.
        assert msgspec.convert(msgspec.to_builtins(value, builtin_types=(Decimal,)), schema_type) == value


@pytest.mark.parametrize("first", range(0, 0x11000, 0x1000))
def test_each_character_is_text_or_a_problem(first: int) -> None:
    """Should refuse what YAML has no place for by its own sentence, and never raise."""
    for code in range(first, first + 0x1000):
        if not 0xD800 <= code < 0xE000:
            raw = f"name: acme\nplan: {chr(code)}team\n".encode()
            value, problems = read(raw, schema.TenantFile)
            assert value is not None or problems, hex(code)


def test_a_file_in_another_encoding_is_refused() -> None:
    """Should name the line and the first byte that is not UTF-8."""
    value, problems = read(b"name: acme\n# caf\xe9\nplan: team\n", schema.TenantFile)
    assert value is None
    assert problems == [Problem("x.yaml", 2, "", "not UTF-8: byte 0xe9; save the file as UTF-8")]


def test_a_huge_file_is_refused() -> None:
    """Should not even be decoded."""
    value, problems = read(b"#" * (bounds.POLICY_FILE_BYTES_MAX + 1), schema.TenantFile)
    assert value is None
    assert problems == [Problem("x.yaml", 1, "", f"larger than {bounds.POLICY_FILE_BYTES_MAX} bytes")]


def test_aliases_cannot_multiply() -> None:
    """Should stop at the first anchor of a file that would unfold to a million values."""
    layers = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 7)]
    value, problems = read("\n".join(["a0: &a0 [x]", *layers]).encode(), schema.TenantFile)
    assert value is None
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("written", "nanos"),
    [("0.15", 150_000_000), ("0.000000001", 1), ("2", 2 * 10**9), ('"0.1"', 10**8), ("1_000.5", 1000_500_000_000)],
)
def test_prices_are_exact(written: str, nanos: int, tmp_path: Path) -> None:
    """Should become integer nano-dollars per million tokens without passing through a binary fraction."""
    from proxy.policy.compile import compile_policy

    config = lay_out(BASE, tmp_path)
    (config / "prices.yaml").write_text(
        f'version: "1"\nmodels:\n  small: {{prompt: {written}, completion: 0.60}}\n'
        "  large: {prompt: 2.5, cached: 1.25, completion: 10}\n"
    )
    price = compile_policy(config, {}).models["small"].price
    assert price is not None
    assert (price.prompt, price.cached, price.completion, price.version) == (nanos, nanos, 600_000_000, "1")


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """Should know the line of every value, by the key that introduces it."""
    config = lay_out(BASE, tmp_path)
    text = (config / "plans.yaml").read_text().splitlines()
    problems: list[Problem] = []
    plans = read_all(config, {}, problems).plans
    for path, line in plans.lines.items():
        if path:
            assert str(path[-1]) in text[line - 1] or isinstance(path[-1], int)
    assert len(plans.lines) == 13
    assert not problems
