"""What is measured, and how a figure is made of it: builds the C tools, runs one load, pairs ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rivals import Contender

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "bench"


class Cores(NamedTuple):
    """One core for the proxy under test, the others for everything else."""

    proxy: int
    others: set[int]


class Spread(NamedTuple):
    """A figure out of several rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def as_dict(self, digits: int = 3) -> dict[str, float]:
        """For the results file."""
        return {
            "median": round(self.median, digits),
            "low": round(self.low, digits),
            "high": round(self.high, digits),
            "rounds": self.rounds,
        }


def spread(values: Sequence[float]) -> Spread:
    """Median and extremes."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def choose_cores() -> Cores:
    """The last core this process may use is the proxy's. Raises SystemExit on a single core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("the benchmark needs two cores at least: one for the proxy alone")
    return Cores(cores[-1], set(cores[:-1]))


def build() -> None:
    """Compiles the load generator and the fast upstream."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("load", "upstream"):
        command = ["cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", str(BUILD / name)]
        subprocess.run([*command, str(HERE / f"{name}.c")], check=True)


@contextmanager
def fast_upstream(cores: set[int], *, chunks: int = 100, delay_ms: float = 10) -> Iterator[int]:
    """The fast upstream; yields its port."""
    process = subprocess.Popen(
        [str(BUILD / "upstream"), "--chunks", str(chunks), "--delay-ms", str(delay_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        os.sched_setaffinity(process.pid, cores)
        yield int(json.loads(process.stdout.readline())["port"])
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def load(mode: str, contender: Contender, cores: set[int], **options: float) -> dict[str, Any]:
    """One run of the load generator. Raises SystemExit when an answer was wrong: such a figure means nothing."""
    arguments = ["--mode", mode, "--port", str(contender.port), "--key", contender.key]
    pids = (*contender.pids, *contender.beside)
    arguments += ["--pids", ",".join(map(str, pids))] if pids else []
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    done = subprocess.run(
        ["taskset", "-c", ",".join(map(str, sorted(cores))), str(BUILD / "load"), *arguments],
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    if said["errors"] or said["not_200"]:
        raise SystemExit(f"{contender.version}: {said['errors']} errors and {said['not_200']} answers that are not 200")
    own = len(contender.pids)
    said["own_us"] = sum(said["cpu_us"][:own])
    said["beside_us"] = sum(said["cpu_us"][own:])
    return said


def cpu_per_request(contender: Contender, cores: set[int], seconds: float, connections: int = 64) -> dict[str, float]:
    """Saturated by keep-alive requests: CPU of the proxy's own processes for one request, in microseconds."""
    said = load("closed", contender, cores, connections=connections, seconds=seconds, warm=seconds / 4)
    return {
        "us": said["own_us"] / said["requests"],
        "beside_us": said["beside_us"] / said["requests"],
        "requests_per_s": said["requests_per_s"],
        "p50_us": said["p50_us"],
        "p99_us": said["p99_us"],
    }


def cpu_per_chunk(contender: Contender, cores: set[int], seconds: float, streams: int) -> dict[str, float]:
    """Streams at a steady pace: CPU of the proxy's own processes for one streamed frame, in microseconds."""
    said = load("stream", contender, cores, connections=streams, seconds=seconds, warm=1.5)
    return {
        "us": said["own_us"] / said["frames"],
        "beside_us": said["beside_us"] / said["frames"],
        "frames_per_s": said["frames_per_s"],
        "first_p50_us": said["first_p50_us"],
        "core_share": said["own_us"] / said["seconds"] / 1e6,
    }


def memory_per_1000(contender: Contender, cores: set[int], streams: int) -> float:
    """Growth of the proxy's resident memory by open streams, in MB per 1,000 of them. For a fresh process only."""
    fresh = contender._replace(beside=())
    said = load("hold", fresh, cores, connections=streams, seconds=2, warm=3)
    return float(said["kb_open"] - said["kb_before"]) / 1024 * 1000 / streams


def p50_at_rate(contender: Contender, cores: set[int], seconds: float, rate: float) -> dict[str, float]:
    """Open loop at a fixed rate: latency in microseconds from the intended start."""
    said = load("rate", contender, cores, connections=64, rate=rate, seconds=seconds, warm=0.5)
    return {"p50_us": said["p50_us"], "p99_us": said["p99_us"], "late": said["late"]}
