"""Real texts: Python's own library, and words, names and sentences in the scripts of the world."""

from __future__ import annotations

import importlib.util
import random
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.tokens import encoding
from tests.tokens import oracle
from tests.tokens.judging import SEED, judge
from tests.tokens.oracle import NAMES

ROOT = Path(__file__).resolve().parents[2]
FILE_CHARACTERS_MAX = 200_000
OWN = {".c", ".h", ".pyx", ".py", ".md", ".yaml"}
INSTALLED = {".py", ".txt", ".md", ".rst", ".po", ".json", ".js", ".html", ".css", ".c", ".h", ".pyi"}


def library() -> list[Path]:
    """The sources of Python's library, without what is installed beside it."""
    whole = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in whole.rglob("*.py") if not {"site-packages", "__pycache__"} & set(path.parts))


def catalogues() -> list[Path]:
    """Faker's providers: lists of words, names, streets and professions in about seventy languages, as UTF-8."""
    found = importlib.util.find_spec("faker")
    assert found is not None
    assert found.origin is not None
    return sorted(Path(found.origin).parent.rglob("*.py"))


def read(path: Path) -> str:
    """A file's text; what is no UTF-8 in it becomes U+FFFD, as it would on its way into JSON."""
    return path.read_bytes().decode("utf-8", "replace")[:FILE_CHARACTERS_MAX]


def windows(texts: Iterator[str] | list[str], each: int) -> Iterator[str]:
    """Random parts of texts: they begin and end where no file would."""
    chance = random.Random(f"windows {SEED}")
    for text in texts:
        for _ in range(each):
            start = chance.randrange(len(text) + 1)
            yield text[start : start + chance.randrange(1, 400)]


def test_the_catalogues_have_many_scripts() -> None:
    """Aim: the texts below are what they are used for: at least twenty scripts, each with a thousand letters."""
    letters: dict[str, int] = {}
    for path in catalogues():
        for character in read(path):
            if character > "\x7f" and character.isalpha():
                script = unicodedata.name(character, "?").split()[0]
                letters[script] = letters.get(script, 0) + 1
    many = {script for script, number in letters.items() if number >= 1000}
    known = {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TAMIL", "ORIYA", "SINHALA"}
    assert many >= known | {"THAI", "GEORGIAN", "ARMENIAN", "HANGUL", "CJK", "KATAKANA"}


@pytest.mark.parametrize("name", NAMES)
def test_catalogues(name: str) -> None:
    """Aim: lists and sentences in many scripts, whole and in windows."""
    texts = [read(path) for path in catalogues()]
    assert judge(name, texts, "catalogues") > 500
    judge(name, windows(texts, 8), "windows of catalogues")


@pytest.mark.parametrize("name", NAMES)
def test_source_trees(name: str) -> None:
    """Aim: a third of the library with its tests, with its own line ends and with those of Windows, and windows of it;
    and this project's own sources, C among them."""
    texts = [read(path) for path in library()[::3]]
    assert judge(name, texts, "the library") > 300
    judge(name, (text[:20_000].replace("\n", "\r\n") for text in texts), "the library with CRLF")
    judge(name, windows(texts, 8), "windows of the library")
    folders = [ROOT / name for name in ("proxy", "tests", "docs")]
    own = [path for folder in folders for path in folder.rglob("*") if path.suffix in OWN]
    judge(name, map(read, own), "this project")


@pytest.mark.parametrize("name", NAMES)
def test_streams_of_real_texts(name: str) -> None:
    """Aim: the same texts as an answer would bring them, in deltas of some characters, and by JSON."""
    made = encoding(name)
    chance = random.Random(f"deltas {SEED}")
    for path in chance.sample(catalogues(), 100) + chance.sample(library(), 60):
        text = read(path)[:30_000]
        stream, at = made.stream(), 0
        while at < len(text):
            end = at + chance.randrange(1, 12)
            stream.feed(text[at:end].encode())
            at = end
        assert stream.count() == oracle.count(name, text), path


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_installed(name: str) -> None:
    """Aim: every text file of the library and of all installed packages."""
    folders = {Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib")}
    found = {path for folder in folders for path in folder.rglob("*") if path.suffix in INSTALLED}
    paths = sorted(path for path in found if path.is_file())
    assert judge(name, map(read, paths), "everything") > 1000
