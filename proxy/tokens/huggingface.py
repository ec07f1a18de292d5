"""A HuggingFace `tokenizer.json`, counted by the `tokenizers` package (extra `weir-gateway[tokenizers]`).

The package is imported where a file is read: a policy that names none needs none. It holds the GIL in `encode` and
lets go of it in `encode_batch_fast`, so only the latter is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.bounds import TOKENIZER_FILE_BYTES_MAX

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 256  # texts that the package takes over at once, which it does with the GIL
PREFIX = "file:"  # before the path, where a policy names such a tokenizer


class BadTokenizer(Exception):
    """The file cannot count; the text says why and what would be right."""


class HuggingFace:
    """One file's tokenizer, read on first use, which takes a second for a large one. Raises BadTokenizer there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read: Tokenizer | None = None

    @property
    def ready(self) -> bool:
        """Whether the file has been read."""
        return self._read is not None

    def count(self, texts: Sequence[bytes]) -> int:
        """Tokens of all texts, each by itself, without a beginning or an end of its own. About 2 MB/s: for a thread."""
        if self._read is None:
            self._read = read(self._path)
        tokens = 0
        for at in range(0, len(texts), _BATCH):
            words = [text.decode("utf-8", "replace") for text in texts[at : at + _BATCH]]
            tokens += sum(len(one) for one in self._read.encode_batch_fast(words, add_special_tokens=False))
        return tokens


def read(path: str) -> Tokenizer:
    """The tokenizer of a file. Raises BadTokenizer."""
    try:
        import tokenizers
    except ImportError:
        raise BadTokenizer(
            "needs the package tokenizers, which is not installed; run pip install 'weir-gateway[tokenizers]'"
        ) from None
    # One text is one job: threads of its own would only take the workers' cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        raw = _bytes_of(Path(path))
    except IsADirectoryError:
        raise BadTokenizer(f"{path} is a directory; name the tokenizer.json in it") from None
    except FileNotFoundError:
        raise BadTokenizer(f"no file {path}") from None
    except OSError as error:
        raise BadTokenizer(f"{path} cannot be read: {error.strerror}") from None
    try:
        found = tokenizers.Tokenizer.from_buffer(raw)
    except Exception as error:  # the package raises nothing more special
        raise BadTokenizer(f"{path} is no tokenizer.json: {error}") from None
    # What a file says of cutting and filling is for training; a count is of all there is.
    found.no_truncation()
    found.no_padding()
    return found


def _bytes_of(path: Path) -> bytes:
    size = path.stat().st_size
    if size > TOKENIZER_FILE_BYTES_MAX:
        raise BadTokenizer(f"{path} has {size} bytes; a tokenizer.json has at most {TOKENIZER_FILE_BYTES_MAX}")
    return path.read_bytes()


def complaint(path: str) -> str | None:
    """What is wrong with a file, or None. One that was good and has not changed is not read again."""
    try:
        status = os.stat(path)
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    except OSError:
        stamp = (0, 0, 0)
    if _good.get(path) == stamp:
        return None
    try:
        read(path)
    except BadTokenizer as error:
        return str(error)
    _good[path] = stamp
    return None


_good: dict[str, tuple[int, int, int]] = {}  # path -> what the file was when it was read
