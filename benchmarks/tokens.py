"""Weir's token counter beside tiktoken and fastokens, on real text: `python -m benchmarks.tokens [--encoding NAME]`.

Each text is cut into chunks. A third warms everybody up; every other chunk is counted once by each contender, which
take turns in beginning, so that nobody sees a chunk twice and all share the machine's moods, and its caches. The figure
is the median over the chunks. tiktoken stands for the faster of its two calls. What the contenders count is compared.

English and code come with Python, the other languages from Django's catalogues (both installed by `.[test,bench]`).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics
from time import perf_counter_ns
from typing import NamedTuple

from proxy import tokens
from proxy._fastpath import Encoding
from proxy.tokens import tables, vocabulary
from tests.tokens import oracle

SEED = 7
LANGUAGES = {"Chinese": "zh_Hans", "Japanese": "ja", "Korean": "ko", "Arabic": "ar", "Hindi": "hi", "Russian": "ru"}
CHUNKS_MAX = 800
RUN_BYTES = 250_000  # of an adversarial text: of four times as much tiktoken takes seconds, or its regex gives up
FEED_BYTES = 5  # a streamed delta
FEEDS = 20_000

Count = Callable[[str, bytes], int]


class Text(NamedTuple):
    """One row: chunks nobody has seen, and the least ratio to tiktoken that is asked for."""

    name: str
    chunks: list[str]
    target: float


def catalogue(language: str) -> str:
    """The translations in Django's catalogues of a language."""
    spec = importlib.util.find_spec("django")
    if spec is None or spec.origin is None:
        raise SystemExit("Django is not installed; pip install '.[test,bench]' has it")
    found = []
    for path in sorted(Path(spec.origin).parent.rglob(f"locale/{language}/LC_MESSAGES/django.po")):
        for match in re.finditer(r'^msgstr(?:\[\d\])? ((?:".*"\n?)+)', path.read_text(encoding="utf8"), re.MULTILINE):
            lines = re.findall(r'"(.*)"', match[1])
            found.append("".join(line.replace(r"\n", "\n").replace(r"\"", '"') for line in lines))
    return "\n".join(text for text in found if text)


def chunks(text: str, size: int) -> list[str]:
    """Cuts a text into parts of about so many bytes, in a drawn order."""
    made, part, held = [], [], 0
    for piece in re.findall(r".{1,40}", text, re.DOTALL):
        part.append(piece)
        held += len(piece.encode())
        if held >= size:
            made.append("".join(part))
            part, held = [], 0
    random.Random(SEED).shuffle(made)
    return made[:CHUNKS_MAX]


def texts() -> Iterator[Text]:
    """The rows with real text, then such as no cache knows."""
    english = "\n".join(topics.topics.values())
    code = "\n".join(path.read_text() for path in sorted(Path(random.__file__).parent.glob("*.py"))[:80])
    yield Text("English, 4 KB", chunks(english, 4096), 7)
    yield Text("English, 200 characters", chunks(english, 200), 6)
    yield Text("Python, 4 KB", chunks(code, 4096), 7)
    for name, language in LANGUAGES.items():
        yield Text(f"{name}, 1 KB", chunks(catalogue(language), 1024), 3)  # of 4 KB there would be five
    draw = random.Random(SEED)
    for name, letters in [("hexadecimal", "0123456789abcdef"), ("base64", "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789+/")]:
        yield Text(f"{name}, 4 KB", chunks("".join(draw.choices(letters, k=400_000)), 4096), 1)
    yield Text(
        "emoji, 4 KB", chunks("".join(draw.choices(["😀", "🤣", "👍🏽", "👩\u200d👧", "🔥", "❤️"], k=40_000)), 4096), 1
    )


def adversarial() -> Iterator[tuple[str, str]]:
    """What tokenizers are slow at, in one long piece each."""
    draw = random.Random(SEED)
    for name, unit in [("a", "a"), ("space", " "), ("line end", "\n"), ("digit", "7"), ("emoji", "😀")]:
        yield f"only {name}", unit * (RUN_BYTES // len(unit.encode()))
    yield "only marks", "\u0301" * (RUN_BYTES // 2)
    yield "a to f", "".join(draw.choices("abcdef", k=RUN_BYTES))
    yield "a to z", "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=RUN_BYTES))
    yield "Chinese, any", "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(RUN_BYTES // 3))


def contenders(name: str, counter: Encoding, directory: str) -> dict[str, Count]:
    """Everybody's count of a text."""
    official = oracle.encoding(name)
    found: dict[str, Count] = {
        "weir": lambda text, raw: counter.count(raw),
        "ordinary": lambda text, raw: len(official.encode_ordinary(text)),
        "encode": lambda text, raw: len(official.encode(text, disallowed_special=())),
    }
    if importlib.util.find_spec("fastokens"):
        import fastokens

        ranks = Path(directory) / f"{name}.tiktoken"
        ranks.write_bytes(vocabulary.rank_file(vocabulary.read(name)))
        fast = fastokens.Tokenizer.from_tiktoken(str(ranks), encoding=name)
        found["fastokens"] = lambda text, raw: len(fast.encode_ordinary(text))
    return found


def measure(calls: dict[str, Count], text: Text) -> tuple[dict[str, float], bool]:
    """Nanoseconds a byte of each contender, the median over the chunks, and whether their counts agree."""
    names, agree = list(calls), True
    warm = len(text.chunks) // 3
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number, chunk in enumerate(text.chunks):
        raw, turn, counted = chunk.encode(), number % len(names), set()
        for name in names[turn:] + names[:turn]:
            call = calls[name]
            start = perf_counter_ns()
            counted.add(call(chunk, raw))
            spent[name].append((perf_counter_ns() - start) / len(raw))
        agree &= len(counted) == 1
    return {name: statistics.median(figures[warm:]) for name, figures in spent.items()}, agree


def row(name: str, ns: dict[str, float], agree: bool, target: float | None = None, note: str = "") -> None:
    """Prints one line: MB/s of each, and Weir's ratios."""
    tiktoken = min(ns["ordinary"], ns["encode"])
    fast = ns.get("fastokens")
    missed = "" if target is None or tiktoken / ns["weir"] >= target else f"  below {target:g}"
    print(
        f"{name:<26}{1e3 / tiktoken:10.1f}{1e3 / fast if fast else 0:11.1f}{1e3 / ns['weir']:9.1f}"
        f"{tiktoken / ns['weir']:11.1f}{fast / ns['weir'] if fast else 0:12.2f}"
        f"{missed}{note}{'' if agree else '  COUNTS DIFFER'}",
        flush=True,
    )


def long_runs(calls: dict[str, Count]) -> None:
    """One adversarial text after the other, then four times as much for Weir alone, which must take four times as long.

    Each round's text is a character shorter, because fastokens remembers pieces of any length.
    """
    for name, text in adversarial():
        spent: dict[str, list[float]] = {call: [] for call in calls}
        agree = True
        for number in range(5):
            part = text[number:]
            raw, counted = part.encode(), set()
            for call in calls if number < 3 else ["weir"]:
                start = perf_counter_ns()
                counted.add(calls[call](part, raw))
                spent[call].append((perf_counter_ns() - start) / len(raw))
            agree &= len(counted) == 1
        longer = []
        for _ in range(5):
            start = perf_counter_ns()
            calls["weir"]("", raw * 4)
            longer.append((perf_counter_ns() - start) / len(raw) / 4)
        ns = {call: statistics.median(figures) for call, figures in spent.items()}
        row(f"250 KB {name}", ns, agree, note=f"  1 MB: {1e3 / statistics.median(longer):.1f}")


def feeds(counter: Encoding) -> None:
    """A stream's cost for a delta of five bytes, without the count after it and with it; Python's loop is in it."""
    raw = "\n".join(topics.topics.values()).encode()
    parts = [raw[at : at + FEED_BYTES] for at in range(0, FEEDS * FEED_BYTES, FEED_BYTES)]
    for counting in (False, True):
        best = sys.maxsize
        for _ in range(9):
            stream = counter.stream()
            feed, count = stream.feed, stream.count
            start = perf_counter_ns()
            for part in parts:
                feed(part)
                if counting:
                    count()
            best = min(best, perf_counter_ns() - start)
        print(f"{'feed and count' if counting else 'feed'} of {FEED_BYTES} bytes: {best / len(parts):.0f} ns")


def opening(name: str) -> None:
    """How long a table takes to open, and which of its pages become this process's own."""
    path, spent = tables.path(name), []
    for _ in range(21):
        start = perf_counter_ns()
        opened = Encoding(path)
        spent.append((perf_counter_ns() - start) / 1e6)
        opened.count(b"x")
    kept = Encoding(path)
    kept.count(" ".join(topics.topics.values()).encode())
    smaps = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    dirty = [int(found[1]) for part in smaps if (found := re.search(r"Private_Dirty:\s+(\d+) kB", part))]
    print(f"opening: median {statistics.median(spent):.2f} ms; the table's private dirty pages: {sum(dirty)} KB")


def main() -> None:
    """Prints the table of one encoding."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--encoding", choices=sorted(tables.NAMES), default="o200k_base")
    name = parser.parse_args().encoding
    counter = tokens.encoding(name)
    print(
        f"{name:<26}{'tiktoken':>10}{'fastokens':>11}{'Weir':>9}{'/ tiktoken':>11}{'/ fastokens':>12}   (MB/s, ratios)"
    )
    with tempfile.TemporaryDirectory() as directory:
        calls = contenders(name, counter, directory)
        gc.disable()
        for text in texts():
            row(text.name, *measure(calls, text), text.target)
        long_runs(calls)
    feeds(counter)
    opening(name)


if __name__ == "__main__":
    main()
