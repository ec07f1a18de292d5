"""`make bench`: Weir against nginx and Envoy, in CPU, memory and latency, in the same run and pair by pair.

    python -m benchmarks.run [--quick] [--rounds N]

One core carries the proxy under test; load and upstream have the others. Each round measures every contender one after
the other, and ratios are taken inside a round: on a shared machine a minute's noise then falls on all alike. The figure
is the median of the rounds, with the lowest and the highest. Weir runs as `weir proxy` with one worker and everything
on: key, policy, limits of tenant and key, journal, meter, log. Its worker's CPU is counted; the keeper's, which writes
the database on another core, is stated beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import measure, rivals, steps
from benchmarks.measure import Cores, Spread, spread
from benchmarks.rivals import Contender
from proxy import __version__
from tests.world.gateway import ROOT, Gateway

RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"
STREAMS = 200
TARGETS = {
    "cpu_per_request_vs_nginx": 3.0,
    "cpu_per_request_vs_envoy": 1.0,
    "cpu_per_chunk_vs_nginx": 1.6,
    "mb_per_1000_streams": 20.0,
    "added_p50_ms": 0.5,
}
# Limits that count every call and refuse none.
WIDE = {"requests_per_minute": 1_000_000_000, "tokens_per_minute": 1_000_000_000_000, "concurrency": 100_000}


@contextmanager
def weir(upstream: int, cores: Cores) -> Iterator[Contender]:
    """The product with one worker on the proxy's core."""
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as directory:
        gateway = Gateway(
            Path(directory),
            f"http://127.0.0.1:{upstream}/v1",
            settings={
                "journal": {"segment_bytes": 16 * 1024 * 1024, "max_bytes": 1024**3, "slots": 8192},
                "upstreams": {"mock": {"max_connections": 4096}},
                "models": {"*": {"upstream": "mock", "unpriced": False}},
            },
            tenant={"limits": WIDE, "key_limits": WIDE},
        )
        gateway.write("prices.yaml", {"version": "bench", "models": {"*": {"prompt": "0.15", "completion": "0.60"}}})
        with gateway:
            workers = tuple(gateway.processes("worker"))
            keepers = tuple(gateway.processes("keeper"))
            assert len(workers) == 1, f"one worker was asked for, there are {len(workers)}"
            for pid in gateway.processes():
                rivals.pin(pid, {cores.proxy} if pid in workers else cores.others)
            yield Contender("weir", f"Weir {version_of_weir()}", gateway.port, workers, keepers, gateway.key)


def version_of_weir() -> str:
    """The version under test with its commit, marked when the tree differs from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return f"{__version__} ({said.stdout.strip()})"
    except (OSError, subprocess.CalledProcessError):
        return __version__


Measure = Callable[[Contender], dict[str, float]]


def rounds(contenders: list[Contender], count: int, one: Measure, what: str) -> dict[str, list[dict[str, float]]]:
    """`count` rounds of every contender in turn; every other round in the other order."""
    figures: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for number in range(count):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            figures[contender.name].append(one(contender))
        last = "  ".join(
            f"{name} {rows[-1].get('us', rows[-1].get('p50_us', 0)):.1f}" for name, rows in figures.items()
        )
        print(f"  {what}, round {number + 1} of {count}: {last}", file=sys.stderr)
    return figures


def ratio(figures: dict[str, list[dict[str, float]]], one: str, other: str, key: str = "us") -> Spread:
    """Ratios pair by pair."""
    return spread([a[key] / b[key] for a, b in zip(figures[one], figures[other], strict=True)])


def compare(cores: Cores, count: int, seconds: float) -> dict[str, Any]:
    """Every figure of the comparison."""
    found: dict[str, Any] = {"raw": {}, "versions": {}}
    with ExitStack() as stack:
        upstream = stack.enter_context(measure.fast_upstream(cores.others))
        direct = Contender("direct", "no proxy", upstream, ())
        faster = stack.enter_context(
            rivals.fastest_nginx(
                upstream,
                cores.proxy,
                lambda contender: measure.cpu_per_request(contender, cores.others, 1.0)["requests_per_s"],
            )
        )
        contenders = [
            faster,
            stack.enter_context(weir(upstream, cores)),
            stack.enter_context(rivals.envoy(upstream, cores.proxy)),
        ]
        found["versions"] |= {contender.name: contender.version for contender in contenders}
        whole = rounds(contenders, count, lambda c: measure.cpu_per_request(c, cores.others, seconds), "us/request")
        chunk = rounds(
            contenders, count, lambda c: measure.cpu_per_chunk(c, cores.others, seconds, STREAMS), "us/chunk"
        )
        latency = rounds(
            [direct, *contenders], count, lambda c: measure.p50_at_rate(c, cores.others, seconds, 500), "p50 us"
        )
    found["raw"] |= {"request": whole, "chunk": chunk, "latency": latency}
    found["cpu_per_request_vs_nginx"] = ratio(whole, "weir", "nginx")
    found["cpu_per_request_vs_envoy"] = ratio(whole, "weir", "envoy")
    found["cpu_per_chunk_vs_nginx"] = ratio(chunk, "weir", "nginx")
    added = [a["p50_us"] - b["p50_us"] for a, b in zip(latency["weir"], latency["direct"], strict=True)]
    found["added_p50_ms"] = spread([value / 1000 for value in added])
    return found


def memory(cores: Cores, count: int, streams: int) -> dict[str, list[float]]:
    """MB per 1,000 open streams, each time of a process that was started for it."""
    found: dict[str, list[float]] = {"nginx": [], "weir": [], "envoy": []}
    with measure.fast_upstream(cores.others, chunks=100_000, delay_ms=200) as upstream:
        for number in range(count):
            with weir(upstream, cores) as contender:
                found["weir"].append(measure.memory_per_1000(contender, cores.others, streams))
            if number == 0:
                path = rivals.find_nginx()[0]
                with rivals.nginx(path, upstream, cores.proxy, "") as contender:
                    found["nginx"].append(measure.memory_per_1000(contender, cores.others, streams))
                with rivals.envoy(upstream, cores.proxy) as contender:
                    found["envoy"].append(measure.memory_per_1000(contender, cores.others, streams))
    return found


def table(found: dict[str, Any]) -> str:
    """What a reader wants to see."""
    raw = found["raw"]
    lines = ["", f"{'':24}{'req/s':>10}{'us/request':>12}{'us/chunk':>10}{'p50 us':>9}{'MB/1,000':>10}"]
    for name in ("nginx", "envoy", "weir"):
        cells = [
            f"{spread([row['requests_per_s'] for row in raw['request'][name]]).median:10,.0f}",
            f"{spread([row['us'] for row in raw['request'][name]]).median:12.1f}",
            f"{spread([row['us'] for row in raw['chunk'][name]]).median:10.1f}",
            f"{spread([row['p50_us'] for row in raw['latency'][name]]).median:9.0f}",
            f"{spread(raw['memory'][name]).median:10.1f}",
        ]
        lines.append(f"{found['versions'][name]:24}" + "".join(cells))
    keeper = spread([row["beside_us"] for row in raw["request"]["weir"]]).median
    lines += ["", f"Weir's keeper, on another core: {keeper:.1f} us a request.", ""]
    lines.append(f"{'figure':28}{'median':>9}{'low':>9}{'high':>9}{'at most':>9}")
    for key, bound in TARGETS.items():
        figure = found[key]
        good = figure.median < bound if key.endswith("envoy") else figure.median <= bound
        verdict = "" if good else "  MISSED"
        lines.append(f"{key:28}{figure.median:9.3f}{figure.low:9.3f}{figure.high:9.3f}{bound:9.1f}{verdict}")
    total = spread([row["us"] for row in raw["request"]["weir"]]).median
    lines += ["", f"What each step of the journey adds (own time, us); a request costs {total:.1f} in all:"]
    known = 0.0
    for step, us in raw["steps"].items():
        known += us
        lines.append(f"  {step:12}{us:8.2f}")
    lines.append(f"  {'bare relay':12}{total - known:8.2f}  (sockets, HTTP on both sides, and the loop)")
    return "\n".join(lines)


def main() -> int:
    """Runs it all; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description="Weir against nginx and Envoy.")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one short round, nothing is judged or kept")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    count, seconds, streams = (1, 0.5, 100) if options.quick else (options.rounds, 3.0, 1000)
    cores = measure.choose_cores()
    measure.build()
    try:
        found = compare(cores, count, seconds)
        held = memory(cores, 1 if options.quick else 3, streams)
    except rivals.Missing as missing:
        print(f"bench: {missing}", file=sys.stderr)
        return 2
    found["raw"]["memory"] = held
    found["mb_per_1000_streams"] = spread(held["weir"])
    found["raw"]["steps"] = steps.measure(200 if options.quick else 5000)
    print(table(found))
    if options.quick:
        return 0
    written: dict[str, Any] = {key: round(found[key].median, 3) for key in TARGETS}
    written["spread"] = {key: found[key].as_dict() for key in TARGETS}
    written["targets"] = TARGETS
    written["versions"] = found["versions"] | {
        "python": platform.python_version(),
        "kernel": platform.release().partition("-")[0],
        "aiohttp": version("aiohttp"),
        "uvloop": version("uvloop"),
        "httptools": version("httptools"),
    }
    written["setting"] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": 1 + len(cores.others),
        "rounds": count,
        "seconds_each": seconds,
        "request_bytes": 1024,
        "answer_bytes": 600,
        "streams": STREAMS,
        "chunk_delay_ms": 10,
    }
    written["raw"] = rounded(found["raw"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(written, indent=1) + "\n")
    return 0 if all(found[key].median <= bound for key, bound in TARGETS.items()) else 1


def rounded(value: Any) -> Any:
    """The same with every float at three decimals."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    raise SystemExit(main())
