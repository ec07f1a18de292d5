"""A worker opens a table by its head: what is none, or not this version's, is refused with one sentence."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import tokens
from proxy._fastpath import BadTable, Encoding
from proxy.tokens import build, tables
from tests.tokens.oracle import NAMES

VERSION_AT, PATTERN_AT, SIZE_AT, COUNTS_AT, NAME_AT, PARTS_AT = 8, 12, 16, 24, 52, 88  # see proxy/_vocab.h
BLOCKS = 9  # the part with the classes


def with_bytes(at: int, changed: bytes) -> Callable[[bytes], bytes]:
    """Overwrites bytes of a table."""
    return lambda body: body[:at] + changed + body[at + len(changed) :]


def refused(path: Path) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(BadTable) as raised:
        Encoding(path)
    sentence = str(raised.value)
    assert sentence.startswith(f"The token table {path} ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.fixture(scope="module")
def intact() -> bytes:
    """The smaller of the two tables."""
    return tables.path("cl100k_base").read_bytes()


CASES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda body: b"", "is shorter than a table's head of 4096 bytes"),
    "half a head": (lambda body: body[:2048], "is shorter than a table's head of 4096 bytes"),
    "a head alone": (lambda body: body[:4096], "has another size than its head says: it was cut or added to"),
    "cut by a byte": (lambda body: body[:-1], "has another size than its head says: it was cut or added to"),
    "cut in half": (lambda body: body[: len(body) // 2], "has another size than its head says: it was cut or added to"),
    "added to": (lambda body: body + b"\0", "has another size than its head says: it was cut or added to"),
    "something else": (lambda body: b"\x7fELF" + body[4:], "is no token table: it does not begin with WEIRTOKN"),
    "magic": (with_bytes(7, b"X"), "is no token table: it does not begin with WEIRTOKN"),
    "version": (
        with_bytes(VERSION_AT, struct.pack("<I", build.VERSION + 1)),
        "is of another version of the format than this build reads",
    ),
    "pattern": (with_bytes(PATTERN_AT, b"\x09"), "names a way of splitting text that this build does not know"),
    "size": (with_bytes(SIZE_AT, struct.pack("<Q", 1 << 40)), "has another size than its head says"),
    "numbers": (with_bytes(COUNTS_AT, b"\xff" * 28), "has a head with numbers that no build writes"),
    "no name": (with_bytes(NAME_AT, b"\0"), "has no name in its head"),
    "an endless name": (with_bytes(NAME_AT, b"x" * 32), "has no name in its head"),
    "a part outside": (with_bytes(PARTS_AT, struct.pack("<Q", 1 << 40)), "has a part that lies outside the file"),
    "a part that wraps": (with_bytes(PARTS_AT, struct.pack("<Q", 2**64 - 8)), "has a part that lies outside the file"),
    "a part of no size": (with_bytes(PARTS_AT + 8, struct.pack("<Q", 0)), "has a part of the wrong size"),
    "a part too short": (with_bytes(PARTS_AT + 8, struct.pack("<Q", 512)), "has a part of the wrong size"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_damage_has_its_sentence(case: str, intact: bytes, tmp_path: Path) -> None:
    """Aim: the sentence says which file, and what is wrong with it."""
    damage, wanted = CASES[case]
    path = tmp_path / "cl100k_base.table"
    path.write_bytes(damage(intact))
    assert wanted in refused(path)


def test_what_cannot_be_read_has_its_sentence(tmp_path: Path) -> None:
    """Aim: a missing file, a directory and a file without leave are told apart."""
    assert refused(tmp_path / "missing").endswith("missing cannot be read: No such file or directory.")
    refused(tmp_path)
    path = tmp_path / "secret"
    path.write_bytes(b"x" * 5000)
    path.chmod(0)
    if os.geteuid() != 0:
        assert "Permission denied" in refused(path)


def test_another_encoding_is_not_taken_for_the_one_asked(
    intact: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aim: a table under another's name is refused before anything is counted by it."""
    (tmp_path / "o200k_base.table").write_bytes(intact)
    monkeypatch.setattr(tables, "DIRECTORY", tmp_path)
    monkeypatch.setattr(tokens, "_opened", {})
    with pytest.raises(BadTable, match=r"o200k_base\.table is that of cl100k_base, under the name of o200k_base\.$"):
        tokens.encoding("o200k_base")


def test_every_name_has_its_table() -> None:
    """Aim: harmony is counted by o200k's own object, an unknown name is an error that lists the known ones."""
    assert tokens.encoding("o200k_harmony") is tokens.encoding("o200k_base")
    assert [tokens.encoding(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(LookupError, match=r"p50k_base.*o200k_base, o200k_harmony, cl100k_base"):
        tokens.encoding("p50k_base")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_no_build_writes_ends(name: str, tmp_path: Path) -> None:
    """Aim: classes that contradict what the splitter knows of ASCII would let it stand still: refused."""
    body = tables.path(name).read_bytes()
    place = struct.unpack_from("<Q", body, PARTS_AT + 16 * BLOCKS)[0]
    path = tmp_path / f"{name}.table"
    path.write_bytes(body)
    refusals = 0
    for changed in range(256):
        with path.open("r+b") as file:
            file.seek(place + ord("-"))
            file.write(bytes([changed]))
        try:
            made = Encoding(path)
        except BadTable:
            refusals += 1
            continue
        assert made.count(b"a - b-c -") > 0
    assert refusals == 255


def test_no_descriptor_is_left(intact: bytes, tmp_path: Path) -> None:
    """Aim: neither an opened nor a refused table keeps a file open: the mapping is enough."""
    path = tmp_path / "cl100k_base.table"
    path.write_bytes(intact)
    before = sorted(os.listdir("/proc/self/fd"))
    made = Encoding(path)
    path.write_bytes(intact[:5000])
    refused(path)
    path.unlink()
    assert sorted(os.listdir("/proc/self/fd")) == before
    del made
