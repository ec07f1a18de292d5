"""What is wrong with a configuration: one problem is one line that says where, what, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Path = tuple[str | int, ...]  # of a value in its file: ("limits", "concurrency"), ("targets", 0, "weight")


class Problem(NamedTuple):
    """`file` as the operator gave it, `line` from 1, `path` as `dotted` writes it ("" for the file as a whole)."""

    file: str
    line: int
    path: str
    sentence: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return f"{where}{self.path}: {self.sentence}" if self.path else where + self.sentence


class PolicyErrors(Exception):
    """A configuration that cannot be used. `problems` holds all of them, by file and line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Path) -> str:
    """The path as messages show it: `models.gpt-4.1.targets[0].weight`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def guess(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word that `word` was most likely meant to be."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def instead(word: str, known: Iterable[str], none: str) -> str:
    """The end of a sentence about an unknown word: the likely one, else all of them, else `none`."""
    names = sorted(known)
    likely = guess(word, names)
    if likely is not None:
        return f"did you mean {likely}?"
    if not names:
        return none
    shown = names if len(names) <= 12 else [*names[:11], f"{len(names) - 11} more"]
    return f"known here: {listed(shown)}"
