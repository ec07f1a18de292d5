"""`weir reload`: takes the changed policy into use, whole or not at all. Returns when every worker serves by it."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from proxy import board, bounds, clock, locks
from proxy._fastpath import Arena
from proxy.board import Board
from proxy.keeping.health import living
from proxy.settings import Settings
from proxy.verbs import config_argument
from proxy.verbs.proxy import judged

_POLL_SECONDS = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir reload`."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0 when every serving worker reports the new policy, 1 with the reason otherwise."""
    found = judged(args.config, "reload")
    if found is None:
        return 1
    why = reload(found[0])
    if why:
        print(f"weir reload: {why}", file=sys.stderr)
        return 1
    print(f"reloaded; version {found[1].version}")
    return 0


def reload(process: Settings) -> str:
    """Asks the keeper and waits for the workers. Returns "" or why it is not done."""
    pid = locks.holder(process.data_dir / "keeper.lock")
    if pid is None:
        return f"no keeper runs on {process.data_dir}; start it with `weir run` or `weir proxy`"
    arena = Arena(os.fspath(process.data_dir / "arena"), clock.boot_id())
    try:
        words = Board(arena)
        ok, failed = arena.word(board.RELOADS_OK), arena.word(board.RELOADS_FAILED)
        os.kill(pid, signal.SIGHUP)
        deadline_ns = clock.now_ns() + bounds.RELOAD_SECONDS_MAX * 1_000_000_000
        while clock.now_ns() < deadline_ns:
            if arena.word(board.RELOADS_FAILED) > failed:
                return "the keeper refused the configuration; its log has every problem, and the old policy stays"
            if arena.word(board.RELOADS_OK) > ok and not behind(words, clock.now_ns()):
                return ""
            clock.pause(_POLL_SECONDS)
        if arena.word(board.RELOADS_OK) == ok:
            return f"the keeper (process {pid}) did not take it within {bounds.RELOAD_SECONDS_MAX} s"
        late = ", ".join(str(pid) for pid in behind(words, clock.now_ns()))
        return f"the policy is published, but workers still serve by the old one: processes {late}"
    finally:
        arena.close()


def behind(words: Board, now_ns: int) -> list[int]:
    """Process ids of serving workers that have not taken the newest policy."""
    generation = words.arena.word(board.POLICY_GENERATION)
    return [
        row.pid for row in living(words, now_ns) if row.state == board.SERVING and row.policy_generation < generation
    ]
