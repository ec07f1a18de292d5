"""`weir restart`: every worker replaced one by one, losing nothing. Returns when the old ones have ended."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from proxy import bounds, clock, locks, settings
from proxy.policy.problems import PolicyErrors
from proxy.settings import Settings
from proxy.telemetry.metrics import Counters
from proxy.verbs import config_argument

_POLL_SECONDS = 0.05
_FAMILY = "weir_rolling_restarts_total"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir restart`."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0 when it is done, 1 with the reason when it is not."""
    try:
        why = restart(settings.load(args.config))
    except (PolicyErrors, OSError) as error:
        why = str(error)
    if why:
        print(f"weir restart: {why}", file=sys.stderr)
        return 1
    print("restarted")
    return 0


def restart(process: Settings) -> str:
    """Asks the supervisor and waits. Returns "" or why it is not done."""
    lock = process.data_dir / "supervisor.lock"
    pid = locks.holder(lock)
    if pid is None:
        return f"no supervisor runs on {process.data_dir}; start it with `weir run` or `weir proxy`"
    counters = Counters(process.data_dir / "metrics")
    try:
        ok, failed, begun = (counters.total(_FAMILY, result) for result in ("ok", "failed", "begun"))
        # One that is under way may have begun before whatever the operator changed: ours is the one after it.
        target = ok + failed + 1 + (begun > ok + failed)
        os.kill(pid, signal.SIGUSR2)
        deadline_ns = clock.now_ns() + int(seconds_max(process) * 1e9)
        while clock.now_ns() < deadline_ns:
            if counters.total(_FAMILY, "ok") + counters.total(_FAMILY, "failed") >= target:
                if counters.total(_FAMILY, "failed") > failed:
                    return "a replacement did not get ready; the old workers go on. The supervisor's log says why"
                return ""
            if locks.holder(lock) != pid:
                return "the supervisor has ended meanwhile"
            clock.pause(_POLL_SECONDS)
        return f"it is not done after {seconds_max(process):g} s; the supervisor's log says how far it is"
    finally:
        counters.close()


def seconds_max(process: Settings) -> float:
    """Every part may take its whole time to start, and the old workers theirs to drain."""
    return bounds.STARTING_SECONDS_MAX * (process.workers + 2) + process.drain_seconds + 30
