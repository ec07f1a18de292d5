"""The journal's C core dies at its store boundaries, its recoverers die too, and an outside oracle counts the rest."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "proxy" / "_journal.h"
DRIVER = Path(__file__).with_name("kill_driver.c")
FACTS = ("lives", "worker_kills", "recoverer_kills", "records", "crashes", "complete", "doubt")

# What a change of the product must not be able to do unnoticed: (text in the header, what stands there instead).
MUTANTS = {
    "FREE before append": (
        "    jrn_append(j, slot->call, payload, size);\n    jrn_settle(slot, drop, context);\n",
        "    jrn_settle(slot, drop, context);\n    jrn_append(j, slot->call, payload, size);\n",
    ),
    "recovery does not look in the log": ("    if (at) log->found[at - log->calls] = 1;\n", "    (void)at;\n"),
    "OPEN before the record": (
        "    slot->call = call;\n    JRN_STEP();\n    jrn_copy(slot->opened, opened, size);\n",
        "    slot->call = call;\n    JRN_STORE(&slot->state, JRN_OPEN);\n    JRN_STEP();\n"
        "    jrn_copy(slot->opened, opened, size);\n",
    ),
    "no double buffer": ("uint64_t flip = slot->flip + 1;", "uint64_t flip = slot->flip;"),
    "CLOSING before the closing area": (
        "    jrn_copy(j->head->closing, payload, size);\n    JRN_STORE(&slot->state, JRN_CLOSING);\n    JRN_STEP();\n",
        "    JRN_STORE(&slot->state, JRN_CLOSING);\n    JRN_STEP();\n    jrn_copy(j->head->closing, payload, size);\n",
    ),
    "a call counted before it is open": (
        "    slot->call = call;\n    JRN_STEP();\n    jrn_copy(slot->opened",
        "    JRN_STORE(&j->head->calls, call);\n    slot->call = call;\n    JRN_STEP();\n    jrn_copy(slot->opened",
    ),
    "recovery does not mend the count of calls": (
        "if (j->slots[i].call > calls) calls = j->slots[i].call;",
        ";",
    ),
    "a second attempt mixed with the first": (
        "    JRN_STORE(&slot->sent_word, slot->sent_word & ~0xffffffffull);\n",
        "",
    ),
    "moved segments left oldest first": (
        "for (int i = count - 1; i >= 0; i--) {\n        jrn_segment_headof(old[i])->cut",
        "for (int i = 0; i < count; i++) {\n        jrn_segment_headof(old[i])->cut",
    ),
    "half a move is taken for a whole one": (
        "    moving.target.seq = synced;\n",
        "    moving.target.seq = synced;\n    for (int i = 0; i < count; i++) {\n"
        "        jrn_segment_headof(old[i])->cut = synced;\n"
        "        jrn_segment_headof(old[i])->bad = JRN_MOVED;\n    }\n",
    ),
    "recovery goes on in a segment that was left": (
        "if (jrn_segment_headof(segments[at])->bad == JRN_MOVED) j->offset = segments[at].size;",
        ";",
    ),
}


def build(directory: Path, header: str) -> Path:
    """The driver, compiled against this text of the header."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the kill harness needs a C compiler, as the product's own build does"
    (directory / "_journal.h").write_text(header)
    binary = directory / "driver"
    subprocess.run(
        [
            compiler, "-O1", "-std=gnu11", "-Wall", "-Werror", "-Wno-unused-function", "-DWEIR_KILLPOINTS",
            '-DJOURNAL_HEADER="_journal.h"', f"-I{directory}", str(DRIVER), "-o", str(binary),
        ],
        check=True,
        timeout=120,
    )  # fmt: skip
    return binary


def run(binary: Path, *arguments: object, seconds: float = 240) -> tuple[dict[str, int], dict[str, int]]:
    """(facts, faults) that the driver counted; a driver that dies of itself is one fault."""
    command = [str(binary), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    counts = {name: int(value) for name, _, value in (line.partition("=") for line in done.stdout.splitlines())}
    faults = {name: count for name, count in counts.items() if name not in FACTS and count}
    if done.returncode:
        faults["driver"] = done.returncode
    return counts, faults


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"), HEADER.read_text())


@pytest.fixture
def seed() -> int:
    value = random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {value}")
    return value


def test_worker_dies_at_every_boundary(driver: Path, seed: int) -> None:
    """Whatever store a worker dies behind, each call it opened has one whole and true record and holds nothing."""
    facts, faults = run(driver, "points", 1, 4000, 1, seed)
    assert not faults, (seed, faults, facts)
    assert facts["lives"] == facts["worker_kills"] == 4000
    # The run met what it is there for: calls that ended, calls that crashed, columns in doubt.
    assert min(facts["complete"], facts["crashes"], facts["doubt"]) > 100


def test_recoverers_die_at_every_boundary(driver: Path, seed: int) -> None:
    """A recovery that is killed again and again, each time a little later, ends with the same truth."""
    facts, faults = run(driver, "chains", 150, seed)
    assert not faults, (seed, faults, facts)
    assert facts["recoverer_kills"] > 1000


def test_kills_at_any_moment_with_racing_recoverers(driver: Path, seed: int, tmp_path: Path) -> None:
    """SIGKILL between any two instructions, and three recoverers racing for the lock, leave the same truth."""
    facts, faults = run(driver, "random", 600, seed, tmp_path / "lock")
    assert not faults, (seed, faults, facts)
    assert facts["worker_kills"] == 600
    assert facts["recoverer_kills"] > 50


@pytest.mark.soak
def test_a_million_records_survive_killing(driver: Path, seed: int, tmp_path: Path) -> None:
    """The same three, long: every boundary up to 60,000 and tens of thousands of recoverers."""
    for arguments in (("points", 1, 60000, 1, seed), ("chains", 2000, seed), ("random", 5000, seed, tmp_path / "lock")):
        facts, faults = run(driver, *arguments, seconds=7200)
        assert not faults, (seed, arguments, faults, facts)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, tmp_path: Path) -> None:
    """Each order that the scheme rests on, once broken, is seen by the same harness."""
    text = HEADER.read_text()
    before, after = MUTANTS[name]
    assert text.count(before) == 1, f"the header no longer has exactly one of: {before}"
    driver = build(tmp_path, text.replace(before, after))
    # Fixed seeds: whether a mutant is caught must not be a matter of luck. In portions, since most die early.
    faults: dict[str, int] = {}
    for portion in range(1, 13):
        _, faults = run(driver, "points", portion, 4000, 12, portion)
        if faults:
            break
    assert faults, f"the harness does not see the mutant: {name}"
