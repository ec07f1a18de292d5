"""The data that the token tables are built from: both vocabularies and the classes of code points. Build time only.

`vocab/<name>.vocab` is zlib of: the number of tokens (u32, little-endian), one length byte a token in the order of
their ids, then the bytes of all tokens. The file that OpenAI publishes can be written again from it, byte for byte;
`read` does so and compares the sha256 with the one that tiktoken pins (`tiktoken_ext/openai_public.py`), so a damaged
or edited vocabulary is never built from. `vocab/classes.txt` is a list of ranges, made by `tools/vocabulary.py` from
what tiktoken's own regex engine matches. Imports nothing that is not in Python itself.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CLASSES", "CODE_POINTS", "DIRECTORY", "SHA256", "BadVocabulary", "classes", "pack", "rank_file", "read"]

DIRECTORY = Path(__file__).resolve().parent / "vocab"
# Of the published rank files, as tiktoken pins them.
SHA256 = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
# A code point's class is its place here: other, upper and title case, lower case, letters without case, marks,
# numbers, white space, and the two line ends.
CLASSES = ("OTHER", "UP", "LO", "LB", "MK", "NUM", "WS", "NL")
CODE_POINTS = 0x110000


class BadVocabulary(Exception):
    """A file in `vocab` is not what it must be; the message is one sentence."""


def rank_file(tokens: Sequence[bytes]) -> bytes:
    """The published form: a line for each token, its bytes in base64 and its id."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def pack(name: str, published: bytes) -> bytes:
    """The compact form of a published rank file. Raises BadVocabulary when it is not the one that tiktoken pins."""
    _check(name, published, "the rank file")
    tokens = [base64.b64decode(line.split()[0]) for line in published.splitlines()]
    body = struct.pack("<I", len(tokens)) + bytes(map(len, tokens)) + b"".join(tokens)
    return zlib.compress(body, 9)


def read(name: str, directory: Path = DIRECTORY) -> list[bytes]:
    """All tokens of an encoding, in the order of their ids. Raises BadVocabulary or OSError."""
    path = directory / f"{name}.vocab"
    try:
        body = zlib.decompress(path.read_bytes())
    except zlib.error as error:
        raise BadVocabulary(f"{path} cannot be unpacked ({error}); it must be the file of the repository.") from None
    count = struct.unpack_from("<I", body)[0]
    ends = list(itertools.accumulate(body[4 : 4 + count], initial=4 + count))
    tokens = [body[start:end] for start, end in itertools.pairwise(ends)]
    _check(name, rank_file(tokens), str(path))
    return tokens


def classes(directory: Path = DIRECTORY) -> bytes:
    """One byte for each of the 0x110000 code points: its place in CLASSES. Raises BadVocabulary or OSError."""
    path = directory / "classes.txt"
    table = bytearray(CODE_POINTS)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("#"):
            continue
        try:
            span, name = line.split()
            first, _, last = span.partition("-")
            start, end = int(first, 16), int(last or first, 16) + 1
            table[start:end] = bytes([CLASSES.index(name)]) * (end - start)
        except ValueError:
            raise BadVocabulary(f"{path}:{number}: {line!r} is not a range and a class, as in 0041-005A UP.") from None
    if len(table) != CODE_POINTS:
        raise BadVocabulary(f"{path} names code points above {CODE_POINTS - 1:X}, which do not exist.")
    return bytes(table)


def _check(name: str, published: bytes, what: str) -> None:
    """Compares with the pin. Raises BadVocabulary."""
    if name not in SHA256:
        raise BadVocabulary(f"{name} is no vocabulary of Weir's; there are {', '.join(SHA256)}.")
    found = hashlib.sha256(published).hexdigest()
    if found != SHA256[name]:
        raise BadVocabulary(f"{what} is not {name}: its ranks have sha256 {found}, and tiktoken pins {SHA256[name]}.")
