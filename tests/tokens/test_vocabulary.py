"""The committed data is tiktoken's: each token, each class of each code point, and each refusal of anything else."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from proxy.tokens import vocabulary
from proxy.tokens.vocabulary import BadVocabulary
from tests.tokens import oracle
from tests.tokens.oracle import NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> Iterator[dict[str, object]]:
    """What tools/vocabulary.py defines; it is no package."""
    import runpy

    before = list(sys.path)
    yield runpy.run_path(str(ROOT / "tools" / "vocabulary.py"))
    sys.path[:] = before


@pytest.mark.parametrize("name", [*NAMES, "o200k_harmony"])
def test_pins_are_those_of_tiktokens_source(name: str) -> None:
    """Aim: the sha256 that `read` insists on is the one with which tiktoken would check its download."""
    base = name if name in NAMES else "o200k_base"
    assert oracle.official(name)["sha256"] == vocabulary.SHA256[base]


def test_harmony_is_the_same_table() -> None:
    """Aim: o200k_harmony differs from o200k_base in special tokens alone, so one table serves both."""
    harmony, base = oracle.official("o200k_harmony"), oracle.official("o200k_base")
    assert harmony["pat_str"] == base["pat_str"]
    assert harmony["mergeable_ranks"] == base["mergeable_ranks"]


@pytest.mark.parametrize("name", NAMES)
def test_every_id_is_tiktokens(name: str) -> None:
    """Aim: tiktoken decodes each id to the token of the file, and encodes each token to its id."""
    tokens, encoding = oracle.tokens(name), oracle.encoding(name)
    assert encoding.n_vocab == len(tokens) == len(set(tokens))
    assert encoding.decode_tokens_bytes(list(range(len(tokens)))) == tokens
    assert [encoding.encode_single_token(token) for token in tokens] == list(range(len(tokens)))


@pytest.mark.parametrize("name", NAMES)
def test_packing_again_gives_the_same(name: str) -> None:
    """Aim: the published file can be written from the compact one, and the compact one from the published."""
    published = vocabulary.rank_file(oracle.tokens(name))
    assert published.startswith(b"IQ== 0\n")
    kept = (vocabulary.DIRECTORY / f"{name}.vocab").read_bytes()
    # Another zlib may pack otherwise; what is packed is the same.
    assert zlib.decompress(vocabulary.pack(name, published)) == zlib.decompress(kept)


def test_a_wrong_rank_file_is_refused(tool: dict[str, object], tmp_path: Path) -> None:
    """Aim: not one changed bit is packed, and the sentence says what was found and what is right."""
    published = bytearray(vocabulary.rank_file(oracle.tokens("cl100k_base")))
    published[1000] ^= 1
    with pytest.raises(BadVocabulary) as raised:
        vocabulary.pack("cl100k_base", bytes(published))
    sentence = r"the rank file is not cl100k_base: its ranks have sha256 [0-9a-f]{64}, and tiktoken pins [0-9a-f]{64}\."
    assert re.fullmatch(sentence, str(raised.value))
    assert vocabulary.SHA256["cl100k_base"] in str(raised.value)
    with pytest.raises(BadVocabulary, match=r"gpt2 is no vocabulary of Weir's; there are o200k_base, cl100k_base\."):
        vocabulary.pack("gpt2", bytes(published))


@pytest.mark.parametrize("damage", ["a token", "an order", "cut", "not zlib"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    """Aim: a table is never built from anything but the vocabulary that tiktoken pins."""
    kept = (vocabulary.DIRECTORY / "cl100k_base.vocab").read_bytes()
    body = bytearray(zlib.decompress(kept))
    if damage == "a token":
        body[-1] ^= 1
    elif damage == "an order":
        body[-2:] = body[-1:] + body[-2:-1]
    made = {"cut": kept[:-10], "not zlib": b"\0" + kept}.get(damage) or zlib.compress(bytes(body), 1)
    (tmp_path / "cl100k_base.vocab").write_bytes(made)
    with pytest.raises(BadVocabulary) as raised:
        vocabulary.read("cl100k_base", tmp_path)
    sentence = str(raised.value)
    assert str(tmp_path / "cl100k_base.vocab") in sentence
    assert sentence.endswith(".")
    assert sentence.count("\n") == 0


def test_classes_are_tiktokens(tool: dict[str, object]) -> None:
    """Aim: each code point has the class that tiktoken's own regex engine gives it, and the file says whose it is."""
    text = (vocabulary.DIRECTORY / "classes.txt").read_text()
    assert tool["derived_classes"]() == vocabulary.classes()
    version, unicode_version = re.match(r"# .* tiktoken (\S+) sees them \(Unicode (\S+)\)", text).groups()
    assert version == metadata.version("tiktoken")
    assert tool["unicode_version"]() == unicode_version
    assert tool["classes_text"](tool["derived_classes"]()) == text


def test_classes_cover_what_the_patterns_name(tool: dict[str, object]) -> None:
    """Aim: the eight classes tell apart whatever the patterns do: no property in them is left out, and the letters of
    contractions fold as they are written down in the splitter."""
    matched = tool["matched"]
    letters = matched(r"\p{L}+")
    classes = vocabulary.classes()
    by_class: dict[str, set[int]] = {name: set() for name in vocabulary.CLASSES}
    for code_point, number in enumerate(classes):
        by_class[vocabulary.CLASSES[number]].add(code_point)
    assert letters == by_class["UP"] | by_class["LO"] | by_class["LB"]
    assert matched(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+") == by_class["UP"] | by_class["LB"] | by_class["MK"]
    assert matched(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+") == by_class["LO"] | by_class["LB"] | by_class["MK"]
    assert matched(r"[^\s\p{L}\p{N}]+") == (by_class["OTHER"] | by_class["MK"]) - set(range(0xD800, 0xE000))
    assert matched(r"\s+") == by_class["WS"] | by_class["NL"]
    assert by_class["NL"] == {10, 13}
    said = "".join(oracle.official(name)["pat_str"] for name in NAMES)
    named = set(re.findall(r"\\p\{(\w+)\}", said))
    assert named == {"L", "N", "Lu", "Lt", "Lm", "Lo", "Ll", "M"}
    folds = {letter: matched(f"(?i:{letter})") - set(map(ord, letter + letter.upper())) for letter in "sdmtlver"}
    assert {letter: found for letter, found in folds.items() if found} == {"s": {0x17F}}


@pytest.mark.parametrize("line", ["41 UP LO", "0041-XX UP", "0041-005A", "0041-005A UPPER"])
def test_an_unreadable_class_is_refused(line: str, tmp_path: Path) -> None:
    """Aim: a broken line is named with its number and what it should look like."""
    (tmp_path / "classes.txt").write_text(f"# a heading\n{line}\n")
    with pytest.raises(BadVocabulary, match=r"classes\.txt:2: .* is not a range and a class, as in 0041-005A UP\."):
        vocabulary.classes(tmp_path)
    (tmp_path / "classes.txt").write_text("10FFFF-110000 UP\n")
    with pytest.raises(BadVocabulary, match="code points above 10FFFF"):
        vocabulary.classes(tmp_path)


def test_notices_stand_beside_the_data() -> None:
    """Aim: both licences are there with their holders, and go into every wheel."""
    import tomllib

    notice = (vocabulary.DIRECTORY / "LICENSE.tiktoken").read_text()
    assert "MIT License" in notice
    assert "OpenAI" in notice
    assert "UNICODE LICENSE V3" in (vocabulary.DIRECTORY / "LICENSE.unicode").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "proxy/tokens/vocab/LICENSE.*" in project["license-files"]
    assert {"MIT", "Unicode-3.0"} <= set(project["license"].split(" AND "))


def test_the_build_needs_nothing_but_python() -> None:
    """Aim: setup.py can read and build before anything is compiled or installed."""
    code = "import sys; from proxy.tokens import build, tables; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {name for name in shown.stdout.split() if name.split(".")[0] == "proxy"}
    assert ours == {"proxy", "proxy.tokens", "proxy.tokens.build", "proxy.tokens.tables", "proxy.tokens.vocabulary"}
    assert not {"msgspec", "yaml", "Cython", "proxy._fastpath"} & set(shown.stdout.split())
