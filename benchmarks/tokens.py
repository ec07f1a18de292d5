"""Weir's token counter beside tiktoken and fastokens, on real text: `python -m benchmarks.tokens [--encoding NAME]`.

Each text is cut into chunks. A third warms everybody up; every other chunk is counted once by each contender, which
take turns in beginning, so that nobody sees a chunk twice and all share the machine's moods, and its caches. The figure
is the median over the chunks. tiktoken stands for the faster of its two calls. What the contenders count is compared.
`--keep` writes the figures of both encodings to results/tokens.json, from which README.md has its rows.

English and code come with Python, the other languages from Django's catalogues (both installed by `.[test,bench]`).
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
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
RESULTS = Path(__file__).parent / "results" / "tokens.json"

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


def measure(calls: dict[str, Count], text: Text) -> tuple[dict[str, list[float]], bool]:
    """Nanoseconds a byte of each contender, chunk by chunk behind the warming ones, and whether their counts agree."""
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
    return {name: figures[warm:] for name, figures in spent.items()}, agree


def spread(spent: dict[str, list[float]], rival: str) -> dict[str, float]:
    """How many times as long a rival took, in the median, and the lowest and highest tenth of the chunks."""
    each = [theirs / ours for theirs, ours in zip(spent[rival], spent["weir"], strict=True)]
    tenths = statistics.quantiles(each, n=10, method="inclusive")
    ratio = statistics.median(spent[rival]) / statistics.median(spent["weir"])
    return {"ratio": round(ratio, 2), "low": round(tenths[0], 2), "high": round(tenths[-1], 2)}


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


def compare(name: str) -> dict[str, dict[str, object]]:
    """Prints the table of one encoding; returns the ratios of the rows with real text."""
    counter = tokens.encoding(name)
    print(
        f"{name:<26}{'tiktoken':>10}{'fastokens':>11}{'Weir':>9}{'/ tiktoken':>11}{'/ fastokens':>12}   (MB/s, ratios)"
    )
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as directory:
        calls = contenders(name, counter, directory)
        gc.disable()
        for text in texts():
            spent, agree = measure(calls, text)
            ns = {call: statistics.median(figures) for call, figures in spent.items()}
            row(text.name, ns, agree, text.target)
            faster = min("ordinary", "encode", key=ns.__getitem__)
            found[text.name] = {"target": text.target, "agree": agree, "tiktoken": spread(spent, faster)}
            if "fastokens" in spent:
                found[text.name]["fastokens"] = spread(spent, "fastokens")
        long_runs(calls)
        gc.enable()
    feeds(counter)
    opening(name)
    return found


def main() -> int:
    """Prints one encoding's table, or with --keep both, and keeps them. 1 when a target is missed or counts differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoding", choices=sorted(tables.NAMES), default="o200k_base")
    parser.add_argument("--keep", action="store_true", help="both encodings, into results/tokens.json")
    options = parser.parse_args()
    found = {name: compare(name) for name in (sorted(tables.NAMES) if options.keep else [options.encoding])}
    if options.keep:
        versions = {name: importlib.metadata.version(name) for name in ("tiktoken", "fastokens")}
        RESULTS.write_text(json.dumps({"versions": versions, "encodings": found}, indent=1) + "\n")
    rows = [one for encoding in found.values() for one in encoding.values()]
    return int(not all(one["agree"] and one["tiktoken"]["ratio"] >= one["target"] for one in rows))  # type: ignore[index,operator]


if __name__ == "__main__":
    raise SystemExit(main())
