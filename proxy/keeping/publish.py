"""The policy snapshot: compiled by the keeper, mapped by every worker, swapped whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from proxy import board, clock, failpoint
from proxy._fastpath import Arena
from proxy.policy.compile import compile_policy
from proxy.policy.problems import PolicyErrors
from proxy.policy.snapshot import Policy
from proxy.store.revisions import Published
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Counters

SNAPSHOT = "policy.snapshot"


class Publisher:
    """Turns `config_dir` into the snapshot file of `data_dir` and raises the generation word.

    `note` is told of each policy that is in use from then on; it must neither wait nor fail.
    """

    def __init__(
        self,
        config_dir: Path,
        data_dir: Path,
        arena: Arena,
        counters: Counters,
        log: Log,
        note: Callable[[Published], None],
    ) -> None:
        self._config_dir = config_dir
        self._path = data_dir / SNAPSHOT
        self._arena = arena
        self._counters = counters
        self._log = log
        self._note = note

    def begin(self) -> bool:
        """At the keeper's start. With a bad configuration the snapshot that stands goes on, if there is one."""
        return self.reload() or self._stands()

    def reload(self) -> bool:
        """Compiles and publishes. False for a bad configuration: every problem is logged, the old snapshot stays."""
        try:
            policy = compile_policy(self._config_dir, serving=True)
        except PolicyErrors as errors:
            for problem in errors.problems:
                self._log.error("policy problem", problem=str(problem))
            self._refuse(f"the configuration has {len(errors.problems)} problems; the policy in use stays")
            return False
        except OSError as error:
            self._refuse(f"the configuration cannot be read ({error}); the policy in use stays")
            return False
        write_snapshot(self._path, policy.encode())
        self._say(policy)
        failpoint.reach("keeper.before_generation")
        # Even for an unchanged policy: a keeper that died between file and word left workers on the old one.
        generation = self._arena.raise_word(board.POLICY_GENERATION)
        self._arena.raise_word(board.RELOADS_OK)
        self._counters.add(self._counters.series("weir_reloads_total", "ok"))
        self._log.info("policy published", version=policy.version, generation=generation)
        self._note(_published(policy, clock.wall_us(), generation))
        return True

    def _say(self, policy: Policy) -> None:
        """What of the policy other processes go by without reading it."""
        identity = policy.identity
        self._arena.set_word(board.KEYS_ON_STALE, board.REFUSE if identity.on_stale == "refuse" else board.ALLOW)
        self._arena.set_word(board.KEYS_FRESH_NS_MAX, int(identity.freshness_seconds * 1e9))

    def _refuse(self, message: str) -> None:
        self._arena.raise_word(board.RELOADS_FAILED)
        self._counters.add(self._counters.series("weir_reloads_total", "failed"))
        self._log.error(message)

    def _stands(self) -> bool:
        """Whether an earlier snapshot is there and readable; then its generation counts."""
        try:
            policy = Policy.decode(self._path.read_bytes())
            written_us = self._path.stat().st_mtime_ns // 1000
            self._say(policy)
        except Exception as error:
            self._log.error("there is no earlier policy to go on with", reason=str(error))
            return False
        if self._arena.word(board.POLICY_GENERATION) == 0:
            self._arena.raise_word(board.POLICY_GENERATION)
        self._note(_published(policy, written_us, self._arena.word(board.POLICY_GENERATION)))
        return True


def _published(policy: Policy, published_us: int, generation: int) -> Published:
    return Published(
        version=policy.version,
        published_us=published_us,
        generation=generation,
        tenants=len(policy.tenants),
        plans=len(policy.plans),
        models=len(policy.models),
        upstreams=len(policy.upstreams),
    )


def write_snapshot(path: Path, content: bytes) -> None:
    """Replaces the file whole: a reader sees the old content or the new, also after a power cut."""
    partial = path.with_name(path.name + ".new")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    failpoint.reach("keeper.before_rename")
    os.rename(partial, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
