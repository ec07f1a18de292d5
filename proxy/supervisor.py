"""The supervisor: owns the listening sockets and every other process's life. It holds no business.

Start: demo or other helpers, then the keeper (until a policy snapshot is on the board), then one worker a place, then
the flusher. A part that dies is started again, at once the first time and with exponential back-off when it goes on
dying; a worker or keeper without a heartbeat is killed first.

Signals: SIGHUP goes to the keeper (reload); SIGUSR2 replaces every process one by one; SIGTERM or SIGINT drains and
ends with exit code 0, and a second one hurries. When the supervisor itself is killed, every part sees its lifeline
close and drains; a new supervisor may start at once and finds the same shared memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from proxy import board, bounds, clock, parts, places
from proxy._fastpath import Arena
from proxy.board import Board
from proxy.parts import Child, Helper, Part, Plan, Refused, has_open, raise_file_limit
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import SUPERVISOR_COLUMN, Counters
from proxy.tokens import tables

__all__ = ["Helper", "Plan", "Refused", "Supervisor"]

_WATCH_SECONDS = 0.25  # how often heartbeats are judged
_KEEPER_END_SECONDS = 20.0  # the keeper's last ship: longer than one database transaction's bound
_KEEPER_PATIENCE = 3  # times a worker's bound: no client waits for the keeper, and a restart costs it more
_START_FAILURES_MAX = 5  # in a row before anything has ever served: then the fault is in the configuration


class Supervisor:
    """One supervisor a data directory. `when_serving` is called once with the port when every place serves."""

    def __init__(self, plan: Plan, log: Log, when_serving: Callable[[int], None] | None = None) -> None:
        self._plan = plan
        self._log = log
        self._when_serving = when_serving
        try:
            tables.verify()  # once for all workers, which look at a table's head alone
        except tables.DamagedTable as error:
            raise Refused(str(error)) from None
        self._lock = parts.claim(plan.data_dir)
        try:
            self._arena = Arena(os.fspath(plan.data_dir / "arena"), clock.boot_id())
            self._counters = Counters(plan.data_dir / "metrics", SUPERVISOR_COLUMN)
            self._sockets = places.bind(plan.host, plan.port, plan.workers, shared=self._others_drain())
        except places.CannotListen as error:
            os.close(self._lock)
            raise Refused(str(error)) from None
        self.port: int = self._sockets[0].getsockname()[1]
        self._arena.set_word(board.DRAINING, 0)
        self._arena.set_word(board.SUPERVISOR_HEARTBEAT_NS, clock.now_ns())
        self._lifeline, self._lifeline_end = os.pipe()
        self._children: set[Child] = set()
        self._keeper: Part | None = None
        self._workers: list[Part] = []
        self._helpers: list[tuple[Helper, Part]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop_asked = 0
        self._restart_asked = False
        self._restarting = False
        self._served = False
        self._wake = asyncio.Event()
        self._gave_up = ""

    async def run(self) -> int:
        """Runs everything until told to stop. Returns the exit code: 0 after a drain, 1 when it could not start."""
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR2: self._on_restart,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        raise_file_limit()
        self._build_parts()
        self._log.info("started", port=self.port, workers=self._plan.workers)
        self._task(self._start_all())
        try:
            while not self._stop_asked and not self._gave_up:
                self._wake.clear()
                if self._restart_asked and not self._restarting and self._served:
                    self._restart_asked = False
                    self._restarting = True
                    self._task(self._restart_all())
                await self._wake.wait()
            await self._stop()
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # the end is near, and no late wish changes how it is told
            for child in tuple(self._children):
                child.kill("stop")
                await child.wait(None)
            self._close()
        if self._gave_up:
            self._log.error(self._gave_up)
            return 1
        self._log.info("stopped")
        return 0

    # --- start ---

    def _build_parts(self) -> None:
        plan = self._plan
        line = ("--lifeline-fd", str(self._lifeline))
        for helper in plan.helpers:
            command = (*helper.command, *line) if helper.lifeline else helper.command
            fds = (self._lifeline, *helper.fds)
            part = self._part(helper.name, command, fds, lambda child: True, not helper.lifeline)
            self._helpers.append((helper, part))
        if plan.keeper is not None:
            self._keeper = self._part("keeper", (*plan.keeper, *line), (self._lifeline, *plan.fds), self._keeper_ready)
        for place, one in enumerate(self._sockets):
            os.set_inheritable(one.fileno(), False)
            command = (*plan.worker, "--place", str(place), "--listen-fd", str(one.fileno()), *line)
            name = f"worker {place}"
            fds = (one.fileno(), self._lifeline, *plan.fds)
            self._workers.append(self._part(name, command, fds, self._worker_ready))

    def _part(
        self,
        name: str,
        command: tuple[str, ...],
        fds: tuple[int, ...],
        is_ready: Callable[[Child], bool],
        dies_with_parent: bool = False,
    ) -> Part:
        def spawn() -> Child:
            child = Child(name, command, fds=fds, env=self._plan.env, dies_with_parent=dies_with_parent)
            self._children.add(child)
            child.exited.add_done_callback(lambda _: self._children.discard(child))
            return child

        return Part(name, spawn, is_ready, backoff_seconds_max=self._plan.backoff_seconds_max)

    async def _start_all(self) -> None:
        self._task(self._watch())
        for helper, part in self._helpers:
            if helper.first:
                self._task(self._keep(part))
        if self._keeper is not None:
            self._task(self._keep(self._keeper))
            await self._until(lambda: self._keeper is not None and _is_ready(self._keeper))
        for part in self._workers:
            self._task(self._keep(part))
        await self._until(lambda: all(_is_ready(part) for part in self._workers))
        self._served = True
        self._log.info("serving", port=self.port)
        for helper, part in self._helpers:
            if not helper.first:
                self._task(self._keep(part))
        # What is shown then is the last that is said of the start.
        await self._until(lambda: all(_is_ready(part) for _, part in self._helpers))
        if self._when_serving is not None:
            self._when_serving(self.port)
        self._wake.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(bounds.READY_POLL_SECONDS)

    def _keeper_ready(self, child: Child) -> bool:
        word = self._arena.word
        return word(board.KEEPER_PID) == child.pid and word(board.POLICY_GENERATION) > 0

    def _worker_ready(self, child: Child) -> bool:
        column = self._column(child)
        return column is not None and self._arena.column_word(column, board.STATE) == board.SERVING

    def _column(self, child: Child) -> int | None:
        """The board's row of a worker. Stale rows of dead workers with a reused id are older than the process."""
        for column in range(bounds.COLUMNS):
            if (
                self._arena.column_word(column, board.PID) == child.pid
                and self._arena.column_word(column, board.STATE) != board.NO_STATE
                and self._arena.column_word(column, board.HEARTBEAT_NS) >= child.started_ns
            ):
                return column
        return None

    def _others_drain(self) -> bool:
        """Whether workers of a supervisor that was killed still live on this data directory, or may yet begin to."""
        beat_ns = self._arena.word(board.SUPERVISOR_HEARTBEAT_NS)
        if beat_ns and clock.now_ns() - beat_ns < self._plan.starting_seconds_max * 1e9:
            return True  # a worker that it had just started holds a socket, and is not on the board yet
        limit_ns = 2 * self._plan.heartbeat_seconds_max * 1e9
        return any(
            Path(f"/proc/{row.pid}").exists() and clock.now_ns() - row.heartbeat_ns < limit_ns
            for row in Board(self._arena).rows()
        )

    # --- watch ---

    async def _keep(self, part: Part) -> None:
        """Starts a part, and starts it again whenever its current process ends unasked."""
        while True:
            child = part.current
            if child is not None and child.alive:
                await child.wait(_WATCH_SECONDS)  # bounded: a rolling restart puts another one in its place
                continue
            if child is not None and not child.retired:
                delay = part.ended(child)
                self._died(part, child, delay)
                await asyncio.sleep(delay)
            async with part.lock:
                if part.current is child and await part.start(self._plan.starting_seconds_max):
                    self._log.info("ready", name=part.name, child=part.current.pid if part.current else 0)

    def _died(self, part: Part, child: Child, delay: float) -> None:
        how = parts.died(child.exited.result())
        kind = part.name.split()[0]
        self._log.warning(f"{part.name} {how}", child=child.pid, cause=child.cause, restart_in_seconds=delay)
        self._counters.add(self._counters.series("weir_worker_restarts_total", kind, child.cause))
        if not self._served and part.failures >= _START_FAILURES_MAX:
            self._give_up(f"{part.name} {how} {part.failures} times in a row and never got ready: see its lines above")
        elif not self._served and part is self._keeper and child.exited.result() > 0:
            self._give_up(f"{part.name} {how} instead of getting ready: see its lines above")

    def _give_up(self, why: str) -> None:
        self._gave_up = why
        self._wake.set()

    async def _watch(self) -> None:
        """Kills what no longer says it lives. Ages count from the supervisor's own last gap at the earliest."""
        last_ns = since_ns = clock.now_ns()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now_ns = clock.now_ns()
            if now_ns - last_ns > 4 * _WATCH_SECONDS * 1e9:
                since_ns = now_ns  # this process itself was stopped, or the machine slept: so were the others
            last_ns = now_ns
            self._arena.set_word(board.SUPERVISOR_HEARTBEAT_NS, now_ns)
            for child in tuple(self._children):
                self._judge(child, now_ns, since_ns)
            self._judge_orphans(now_ns, since_ns)

    def _judge_orphans(self, now_ns: int, since_ns: int) -> None:
        """Kills a frozen worker of a supervisor that is gone: its listening socket would swallow its share for ever."""
        ours = {child.pid for child in self._children}
        limit_ns = int(self._plan.heartbeat_seconds_max * 1e9)
        for row in Board(self._arena).rows():
            if row.pid in ours or now_ns - max(row.heartbeat_ns, since_ns) < limit_ns:
                continue
            # A number alone proves nothing: it must be a process that has an epoch of this directory open.
            if has_open(row.pid, (self._plan.data_dir / "journal").glob("*/slots")):
                self._log.error("a worker of an earlier supervisor gives no heartbeat and is killed", child=row.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(row.pid, signal.SIGKILL)

    def _judge(self, child: Child, now_ns: int, since_ns: int) -> None:
        limit = self._plan.heartbeat_seconds_max
        if child.name.startswith("worker"):
            column = self._column(child)
            if column is None:
                return  # still starting: `wait_ready` has its own bound
            beat_ns = self._arena.column_word(column, board.HEARTBEAT_NS)
        elif child.name == "keeper" and child.ready_ns and not child.retired:
            beat_ns = self._arena.word(board.KEEPER_HEARTBEAT_NS)
            limit *= _KEEPER_PATIENCE
        else:
            return
        if now_ns - max(beat_ns, since_ns, child.started_ns) > limit * 1e9:
            self._log.error(f"{child.name} gave no heartbeat for {limit:g} s and is killed", child=child.pid)
            child.kill("heartbeat")
        elif child.retired and now_ns - child.retired_ns > (self._plan.drain_seconds + self._plan.grace_seconds) * 1e9:
            self._log.warning(f"{child.name} drains longer than drain_seconds and is killed", child=child.pid)
            child.kill("drain")

    # --- signals ---

    def _on_stop(self) -> None:
        self._stop_asked += 1
        self._wake.set()
        if self._stop_asked > 1:
            self._log.info("hurrying")

    def _on_hangup(self) -> None:
        if self._plan.hangup_stops:
            self._on_stop()
        elif self._keeper is not None and self._keeper.current is not None:
            self._keeper.current.signal(signal.SIGHUP)

    def _on_restart(self) -> None:
        self._restart_asked = True
        self._wake.set()

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(f"internal error in the supervisor: {error!r}")

    # --- rolling restart ---

    async def _restart_all(self) -> None:
        """Keeper and helpers first, then place by place: nothing old ends before its replacement serves."""
        self._log.info("rolling restart begins")
        self._counters.add(self._counters.series("weir_rolling_restarts_total", "begun"))
        retired: list[Child] = []
        try:
            ok = all([await self._restart_alone(part) for part in self._alone()])
            for part in self._workers:
                if not ok:
                    break
                ok = await self._replace(part, retired)
            for child in retired:
                await child.wait(None)  # bounded: `_judge` kills what drains too long
        finally:
            self._restarting = False
            self._wake.set()
        self._counters.add(self._counters.series("weir_rolling_restarts_total", "ok" if ok else "failed"))
        if ok:
            self._log.info("rolling restart done")
        else:
            self._log.error("rolling restart stopped: a replacement did not get ready; the old processes go on")

    def _alone(self) -> list[Part]:
        """Parts of which there can be only one: they end before their replacement starts."""
        helpers = [part for helper, part in self._helpers if not helper.first]
        return [*([self._keeper] if self._keeper is not None else []), *helpers]

    async def _restart_alone(self, part: Part) -> bool:
        async with part.lock:
            old = part.current
            if old is not None and old.alive:
                old.retire()
                if not await old.wait(_KEEPER_END_SECONDS):
                    old.kill("drain")
                    await old.wait(None)
            return await part.start(self._plan.starting_seconds_max)

    async def _replace(self, part: Part, retired: list[Child]) -> bool:
        async with part.lock:
            new = part.spawn()
            if not await part.wait_ready(new, self._plan.starting_seconds_max):
                return False
            old, part.current = part.current, new
            if old is not None and old.alive:
                old.retire()
                retired.append(old)
                # The old one's accept queue is the new one's too; a pause keeps two places from closing together.
                await asyncio.sleep(bounds.HANDOVER_SECONDS)
            return True

    # --- stop ---

    async def _stop(self) -> None:
        """Readiness off, workers drain, the keeper records what they left, then the rest."""
        self._log.info("draining", seconds=self._plan.drain_seconds)
        self._arena.set_word(board.DRAINING, 1)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._sockets:
            one.close()  # the workers' own copies are now the last: closing those ends the queue
        workers = [child for child in self._children if child.name.startswith("worker")]
        for child in workers:
            if not child.retired:  # one that drains already would take a second SIGTERM for a hurry
                child.retire()
        deadline_ns = clock.now_ns() + int((self._plan.drain_seconds + self._plan.grace_seconds) * 1e9)
        hurried = False
        while alive := [child for child in workers if child.alive]:
            if self._stop_asked > 1:
                if not hurried:
                    hurried = True
                    deadline_ns = min(deadline_ns, clock.now_ns() + int(self._plan.grace_seconds * 1e9))
                # Again and again: two signals that are both still on their way arrive as one, which is no hurry.
                for child in alive:
                    child.signal(signal.SIGTERM)
            if clock.now_ns() > deadline_ns:
                for child in alive:
                    self._log.warning(f"{child.name} did not end in time and is killed", child=child.pid)
                    child.kill("drain")
                    await child.wait(None)
            await asyncio.wait([child.exited for child in alive], timeout=0.05)
        keeper = [self._keeper] if self._keeper is not None else []
        later = [part for helper, part in self._helpers if not helper.first]
        last = [part for helper, part in self._helpers if helper.first]
        for group in (keeper, later, last):
            await self._end(group)

    async def _end(self, group: list[Part]) -> None:
        ending = [part.current for part in group if part.current is not None and part.current.alive]
        for child in ending:
            child.retire()
        for child in ending:
            if not await child.wait(_KEEPER_END_SECONDS):
                child.kill("drain")
                await child.wait(None)

    def _close(self) -> None:
        for one in self._sockets:
            one.close()
        os.close(self._lifeline_end)
        os.close(self._lifeline)
        self._counters.close()
        self._arena.set_word(board.SUPERVISOR_HEARTBEAT_NS, 0)
        self._arena.close()
        os.close(self._lock)


def _is_ready(part: Part) -> bool:
    return part.current is not None and part.current.alive and part.current.ready_ns > 0
