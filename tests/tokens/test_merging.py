"""Long pieces: merged in narrow windows, in wide ones and without any, and within bounded memory."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from proxy.tokens import encoding, tables
from tests.tokens import oracle, texts
from tests.tokens.judging import SEED
from tests.tokens.oracle import NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program merging.c, which includes the very header that the counter is compiled from."""
    program = tmp_path_factory.mktemp("merging") / "merging"
    source = Path(__file__).with_name("merging.c")
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wno-unused-function", "-fsanitize=undefined", "-fno-sanitize-recover"]
    subprocess.run(["gcc", *flags, "-I", str(ROOT / "proxy"), "-o", str(program), str(source)], check=True)
    return program


def pieces() -> list[str]:
    """Texts as one piece each: every kind, long runs of one token, and runs that do not fit their windows."""
    chance = random.Random(f"pieces {SEED}")
    found = [texts.long_words(chance) for _ in range(12)] + [texts.runs(chance) for _ in range(60)]
    found += [texts.rules(chance)[:1500] for _ in range(12)] + [texts.alike(chance) for _ in range(30)]
    found += [texts.crossings(chance) for _ in range(100)] + [texts.vocabulary(chance) for _ in range(100)]
    for unit in (" ", "\n", "a", "=", "-", "\t", "\u3000", "\u4e2d", "ab", " \n", "0"):
        found += [unit * length for length in (1, 2, 127, 128, 129, 255, 256, 257, 300)]
    found += ["a" * length for length in (4095, 4096, 4097)]
    return [piece for piece in found if piece]


@pytest.mark.parametrize("name", NAMES)
def test_each_way_of_merging(name: str, merging: Path) -> None:
    """Aim: windows of 256 bytes, of 4,096 and none give tiktoken's count of a piece; each is tried where the counter
    would not come to it. The narrow ones may decline, the wide ones never did."""
    given = pieces()
    raw = [piece.encode() for piece in given]
    body = b"".join(struct.pack("<I", len(piece)) + piece for piece in raw)
    command = [str(merging), str(tables.path(name))]
    shown = subprocess.run(command, input=body, capture_output=True, check=True, timeout=100).stdout.split()
    assert len(shown) == 3 * len(given)
    declined = 0
    for at, piece in enumerate(given):
        narrow, wide, slow = map(int, shown[3 * at : 3 * at + 3])
        wanted = oracle.merged(name, [piece])
        assert (wide, slow) == (wanted, wanted), (SEED, piece)
        assert narrow in (wanted, -1), (SEED, piece)
        declined += narrow == -1
    assert declined, "no piece needs the wide windows any more: then they can go"


def test_a_broken_table_is_no_piece_of_this(merging: Path, tmp_path: Path) -> None:
    """Aim: the program judges its table as the counter does, so that what it says is about the same thing."""
    (tmp_path / "table").write_bytes(b"x" * 8192)
    shown = subprocess.run([str(merging), str(tmp_path / "table")], capture_output=True, text=True)
    assert shown.returncode == 2
    assert "does not begin with WEIRTOKN" in shown.stderr


@pytest.mark.parametrize("name", NAMES)
def test_threads_count_at_once(name: str) -> None:
    """Aim: long texts are counted without the interpreter's lock, by as many threads as like, while the loop's own
    short ones go on."""
    made = encoding(name)
    chance = random.Random(f"threads {SEED}")
    given = ["".join(texts.mixed(chance) for _ in range(400)) for _ in range(8)]
    wanted = [oracle.count(name, text) for text in given]
    raw = [text.encode() for text in given]
    assert all(len(text) > 12 * 1024 for text in raw)
    wrong: list[int] = []

    def count(which: int) -> None:
        for _ in range(30):
            if made.count(raw[which]) != wanted[which]:
                wrong.append(which)

    threads = [threading.Thread(target=count, args=(which,)) for which in range(len(given))]
    for thread in threads:
        thread.start()
    short = [text[:200] for text in given]
    expected = [oracle.count(name, text) for text in short]
    while any(thread.is_alive() for thread in threads):
        assert [made.count(text.encode()) for text in short] == expected
    for thread in threads:
        thread.join()
    assert wrong == []


BOUNDED = """
import resource, sys
from proxy._fastpath import Encoding
from proxy.tokens import tables
encoding = Encoding(tables.path(sys.argv[1]))
texts = [one * 700_000 for one in (b"aa", b"  ", b"\\r\\n", b"ab", b"77")] + ["\\u4e2d".encode() * 400_000]
encoding.count(b"hello" * 10_000)  # what is made once for long texts is there
bytes_now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (bytes_now + 2_000_000,) * 2)
counted = [encoding.count(text) for text in texts]
stream, fed = encoding.stream(), 0
try:
    while True:
        stream.feed(b"x" * 100_000)
        fed += 1
except MemoryError:
    pass
assert 0 < fed < 100, fed
try:
    stream.feed(b"x" * 4_000_000)
    raise SystemExit("no MemoryError")
except MemoryError:
    pass
del stream
assert encoding.count(b"hello world") == 2
print(*counted)
"""


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_bounded_and_its_lack_is_an_error(name: str) -> None:
    """Aim: megabytes are counted in 2 MB of memory, whatever they are; a stream of one endless piece, which must be
    kept, ends in MemoryError and leaves everything else usable."""
    shown = subprocess.run([sys.executable, "-c", BOUNDED, name], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    counted = [int(word) for word in shown.stdout.split()]
    assert counted[0] == oracle.merged(name, ["a" * 1_400_000])
    assert len(counted) == 6
