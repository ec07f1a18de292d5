"""Life cycles: start, death, silence, replacement, drain, and the death of the supervisor itself."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import board, locks
from proxy.places import CannotListen, bind
from tests.processes.conftest import Site, alive, descendants, eventually


def _wait(site: Site, number: int = -1) -> int:
    return site.started[number].wait(120)


def _kill_all_seen_are_gone(site: Site) -> None:
    eventually("no process is left", lambda: not any(alive(pid) for pid in site.seen))


def test_start_serve_stop(site: Site) -> None:
    """Two places serve on one free port; SIGTERM ends everything with exit code 0 and leaves no process."""
    site.start(port=0)
    rows = site.serving()
    assert {row.place for row in rows} == {0, 1}
    pids = {site.ask() for _ in range(40)}
    assert pids == {row.pid for row in rows}
    site.started[0].send_signal(signal.SIGTERM)
    assert _wait(site) == 0
    assert site.board.rows() == []
    assert site.arena.word(board.DRAINING) == 1
    _kill_all_seen_are_gone(site)


def test_a_killed_worker_is_replaced(site: Site) -> None:
    """SIGKILL to a worker: another serves in its place, the other place never stops, the counters never fall."""
    site.start()
    rows = site.serving()
    for _ in range(20):
        site.ask()
    served = site.counters.total("weir_tenant_requests_total", "stub")
    assert served == 20
    os.kill(rows[0].pid, signal.SIGKILL)
    eventually("the dead one is noticed", lambda: not alive(rows[0].pid))
    fresh = site.serving()
    assert {row.place for row in fresh} == {0, 1}
    assert rows[1].pid in {row.pid for row in fresh}
    for _ in range(20):
        site.ask()
    assert site.counters.total("weir_tenant_requests_total", "stub") == 40
    assert site.counters.total("weir_worker_restarts_total", "worker", "exit") == 1


@pytest.mark.parametrize("how", ["stopped", "blocked"])
def test_a_silent_worker_is_killed_and_replaced(site: Site, how: str) -> None:
    """A worker that is stopped or whose loop is blocked gives no heartbeat: it is killed and its place serves again."""
    (site.claims / "behaviour").write_text("hang")
    site.start(heartbeat_seconds_max=4.0)
    rows = site.serving()
    (site.claims / "behaviour").write_text("serve")
    if how == "stopped":
        os.kill(rows[0].pid, signal.SIGSTOP)
        silent = [rows[0].pid]
    else:
        (site.claims / "hang").touch()
        silent = [row.pid for row in rows]
    eventually("the silent ones are killed", lambda: not any(alive(pid) for pid in silent))
    site.serving()
    assert site.counters.total("weir_worker_restarts_total", "worker", "heartbeat") == len(silent)


def test_a_part_that_never_gets_ready_is_tried_again(site: Site) -> None:
    """A worker that says nothing is killed after its time, and the next one serves."""
    (site.claims / "behaviour").write_text("mute")
    site.start(workers=1, starting_seconds_max=4, heartbeat_seconds_max=60)
    eventually("one was killed", lambda: site.counters.total("weir_worker_restarts_total", "worker", "start"))
    (site.claims / "behaviour").write_text("serve")
    site.serving(1)


def test_backoff_grows_to_its_bound_and_a_good_life_resets_it(site: Site) -> None:
    """A part that keeps dying waits longer each time, up to the bound; one that served starts again at once."""
    site.start(workers=1, backoff_seconds_max=0.3)
    (row,) = site.serving(1)
    (site.claims / "behaviour").write_text("die")
    eventually("the supervisor has seen it serve", lambda: site.facts("ready"))
    time.sleep(1.1)  # long enough to count as a good life
    os.kill(row.pid, signal.SIGKILL)
    told = "worker 0 ended with exit code 3"
    eventually("it died five times", lambda: len(site.facts(told)) >= 5)
    assert [line["restart_in_seconds"] for line in site.facts(told)][:5] == [0.0, 0.1, 0.2, 0.3, 0.3]
    assert [line["restart_in_seconds"] for line in site.facts("worker 0 was ended by SIGKILL")] == [0.0]
    (site.claims / "behaviour").write_text("serve")
    site.serving(1)


def test_gives_up_when_nothing_ever_starts(site: Site) -> None:
    """A worker that dies at every start from the beginning is a fault of the configuration: exit code 1, and why."""
    (site.claims / "behaviour").write_text("die")
    process = site.start(workers=1)
    assert process.wait(120) == 1
    assert "ended with exit code 3 5 times in a row" in site.log.read_text()


def _load(site: Site, stop: threading.Event, failures: list[str], answers: list[int]) -> None:
    while not stop.is_set():
        try:
            answers.append(site.ask())
        except (OSError, ValueError) as error:
            failures.append(repr(error))


def _under_load(site: Site, work: Callable[[], None], answers: list[int]) -> list[str]:
    failures: list[str] = []
    stop = threading.Event()
    threads = [threading.Thread(target=_load, args=(site, stop, failures, answers)) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
    return failures


def test_rolling_restarts_under_load_lose_nothing(site: Site) -> None:
    """Five rolling restarts while four clients connect without a pause: every worker is new, no connection fails."""
    process = site.start()
    old = {row.pid for row in site.serving()}

    def done() -> int:
        return site.counters.total("weir_rolling_restarts_total", "ok")

    answers: list[int] = []

    def roll() -> None:
        for number in range(5):
            process.send_signal(signal.SIGUSR2)
            eventually("the restart is done", lambda number=number: done() > number)
            fresh = {row.pid for row in site.serving()}
            eventually("both of the new ones have answered", lambda fresh=fresh: fresh <= set(answers))

    failures = _under_load(site, roll, answers)
    assert failures == []
    assert len(set(answers)) >= 10
    assert not old & {row.pid for row in site.serving()}
    assert site.counters.total("weir_worker_restarts_total", "worker", "exit") == 0
    assert site.counters.total("weir_tenant_requests_total", "stub") == len(answers)


def test_a_failed_rolling_restart_leaves_the_old_ones(site: Site) -> None:
    """When a replacement does not start, the old workers go on, and the failure is counted."""
    process = site.start()
    old = {row.pid for row in site.serving()}
    (site.claims / "behaviour").write_text("die")
    process.send_signal(signal.SIGUSR2)
    eventually("it is counted", lambda: site.counters.total("weir_rolling_restarts_total", "failed") == 1)
    assert {row.pid for row in site.serving()} == old
    assert site.ask() in old


def test_drain_lets_open_connections_finish(site: Site) -> None:
    """After SIGTERM an open connection gets its answer, new ones are refused, and the exit code is 0."""
    (site.claims / "behaviour").write_text("slow")
    process = site.start()
    site.serving()
    held = site.ask(hold=True)
    try:
        process.send_signal(signal.SIGTERM)
        eventually("the listener is closed", lambda: _refused(site.port))
        assert process.poll() is None
        (site.claims / "release").touch()
        assert int(held.recv(64)) in site.seen
    finally:
        held.close()
    assert process.wait(120) == 0


def _refused(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def test_a_second_sigterm_hurries(site: Site) -> None:
    """With a connection that would hold the drain for minutes, a second SIGTERM ends everything now."""
    (site.claims / "behaviour").write_text("slow")
    process = site.start(drain_seconds=600)
    site.serving()
    held = site.ask(hold=True)
    try:
        process.send_signal(signal.SIGTERM)
        eventually("the listener is closed", lambda: _refused(site.port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert held.recv(64) == b""
    finally:
        held.close()


def test_a_hurry_reaches_a_worker_that_had_no_time_for_the_first_signal(site: Site) -> None:
    """Two SIGTERMs that wait together arrive as one: the worker is told again, and does not drain for minutes."""
    (site.claims / "behaviour").write_text("slow")
    process = site.start(workers=1, drain_seconds=600, grace_seconds=600, heartbeat_seconds_max=600)
    (row,) = site.serving(1)
    files = Path(f"/proc/{row.pid}/fd")
    before = len(list(files.iterdir()))
    held = site.ask(hold=True)
    try:
        eventually("it has the connection", lambda: len(list(files.iterdir())) > before)
        os.kill(row.pid, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        eventually("it drains", lambda: site.facts("draining"))
        process.send_signal(signal.SIGTERM)
        eventually("it hurries", lambda: site.facts("hurrying"))
        os.kill(row.pid, signal.SIGCONT)
        assert process.wait(120) == 0
        assert held.recv(64) == b""
    finally:
        held.close()


def test_a_drain_has_an_end(site: Site) -> None:
    """A worker that never finishes is killed after drain_seconds and its grace, and the exit code is still 0."""
    (site.claims / "behaviour").write_text("slow")
    process = site.start(workers=1, drain_seconds=0.1, grace_seconds=0.4)
    (row,) = site.serving(1)
    held = site.ask(hold=True)
    try:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert not alive(row.pid)
        assert site.facts("worker 0 did not end in time and is killed")
    finally:
        held.close()


def test_late_signals_change_nothing(site: Site) -> None:
    """Wishes to reload, restart and stop that come until the very last instant leave the exit code 0."""
    process = site.start()
    site.serving()
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:
        for late in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM):
            process.send_signal(late)
        time.sleep(0.001)
    assert process.returncode == 0


def test_one_supervisor_a_data_directory(site: Site) -> None:
    """A second supervisor is refused with a sentence that names the first, and the first goes on."""
    first = site.start()
    site.serving()
    assert site.start().wait(120) == 1
    assert f"Another supervisor (process {first.pid}) runs on {site.data_dir}" in site.log.read_text()
    assert locks.holder(site.data_dir / "supervisor.lock") == first.pid
    assert site.ask()


def test_a_new_supervisor_follows_a_killed_one(site: Site) -> None:
    """SIGKILL to the supervisor: its workers drain, a new one starts at once on the same port and the same counters."""
    site.start()
    old = site.serving()
    for _ in range(10):
        site.ask()
    held = site.ask(hold=True)
    held.close()
    site.started[0].kill()
    site.started[0].wait()
    site.start()
    eventually(
        "new workers serve and the old ones are gone",
        lambda: (
            not any(alive(row.pid) for row in old)
            and len([row for row in site.board.rows() if row.state == board.SERVING]) == 2
        ),
    )
    site.note()
    before = site.counters.total("weir_tenant_requests_total", "stub")
    assert before >= 10
    assert site.ask() not in {row.pid for row in old}
    assert site.counters.total("weir_tenant_requests_total", "stub") == before + 1


def test_a_new_supervisor_shares_the_port_with_a_worker_that_was_just_started(site: Site) -> None:
    """Nobody on the board holds the address, but an orphan that is not there yet: the new one serves beside it."""
    (site.claims / "behaviour").write_text("late")
    site.start(workers=1)
    eventually("it has its socket", lambda: site.facts("started"))
    eventually("the worker is on its way", lambda: len(descendants(site.started[0].pid)) == 1)
    site.note()
    site.started[0].kill()
    site.started[0].wait()
    (orphan,) = [pid for pid in site.seen if alive(pid)]
    (site.claims / "behaviour").write_text("serve")
    site.start(workers=1)
    (row,) = site.serving(1)
    assert row.pid != orphan
    (site.claims / "release").touch()
    eventually("the orphan ends", lambda: not alive(orphan))
    assert site.ask() == row.pid


def test_after_an_orderly_end_a_taken_port_is_a_strangers(site: Site) -> None:
    """What listens there now is no orphan of ours: sharing the port would take a part of somebody else's calls."""
    process = site.start(workers=1)
    site.serving(1)
    process.send_signal(signal.SIGTERM)
    assert _wait(site) == 0
    (stranger,) = bind("127.0.0.1", site.port, 1)
    try:
        assert site.start(workers=1).wait(120) == 1
        assert "is in use by another process" in site.log.read_text()
    finally:
        stranger.close()


def test_a_frozen_orphan_is_killed(site: Site) -> None:
    """A worker stopped just after its supervisor died would swallow connections for ever: the next one kills it."""
    (site.claims / "behaviour").write_text("slow")  # the connection keeps it from ending before it is stopped
    site.start(workers=1)
    (row,) = site.serving(1)
    held = site.ask(hold=True)
    try:
        site.started[0].kill()
        site.started[0].wait()
        # Only now: the kernel wakes stopped processes when their parent's death orphans their group.
        os.kill(row.pid, signal.SIGSTOP)
        (site.claims / "behaviour").write_text("serve")
        site.start(workers=1, heartbeat_seconds_max=4.0)
        eventually("the frozen one is gone", lambda: not alive(row.pid))
        assert site.facts("a worker of an earlier supervisor gives no heartbeat and is killed")
    finally:
        held.close()
    site.note()


def test_a_stopped_supervisor_judges_nobody_when_it_comes_back(site: Site) -> None:
    """Ages count from the supervisor's own pause at the earliest: no worker is killed for its absence."""
    process = site.start(heartbeat_seconds_max=4.0)
    rows = site.serving()

    def looks(count: int) -> None:
        for _ in range(count):
            before = site.arena.word(board.SUPERVISOR_HEARTBEAT_NS)
            eventually("a look", lambda before=before: site.arena.word(board.SUPERVISOR_HEARTBEAT_NS) > before)

    process.send_signal(signal.SIGSTOP)
    for row in rows:
        os.kill(row.pid, signal.SIGSTOP)
    time.sleep(4.5)  # beyond the heartbeat bound
    process.send_signal(signal.SIGCONT)
    looks(1)
    for row in rows:
        os.kill(row.pid, signal.SIGCONT)
    site.ask()
    looks(2)
    assert {row.pid for row in site.serving()} == {row.pid for row in rows}


def test_helpers_run_and_end(site: Site, tmp_path: Path) -> None:
    """A helper without a lifeline is started, restarted when it dies, and ended with the rest, also by SIGKILL."""
    command = [
        sys.executable,
        "-c",
        f"import os,time; open({str(tmp_path / 'pid')!r},'w').write(str(os.getpid())); time.sleep(600)",
    ]
    site.start(workers=1, helpers=[{"name": "demo", "command": command, "first": True, "lifeline": False}])
    site.serving(1)

    def pid() -> int:
        text = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""
        return int(text) if text else 0

    first = eventually("the helper runs", pid)
    os.kill(first, signal.SIGKILL)
    second = eventually("it was started again", lambda: (now := pid()) != first and now)
    site.note()
    site.started[0].kill()
    eventually("it ended with its supervisor", lambda: not alive(second))


def test_chaos_of_kills_and_stops(site: Site) -> None:
    """Random SIGKILL and SIGSTOP to workers: the places always serve again, and no counted call is lost."""
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    site.start()
    for _ in range(4):
        rows = site.serving()
        victim = chance.choice(rows)
        os.kill(victim.pid, chance.choice((signal.SIGKILL, signal.SIGSTOP)))
        eventually("the victim is gone", lambda victim=victim: not alive(victim.pid))
    site.serving()
    total = site.counters.total("weir_tenant_requests_total", "stub")
    for _ in range(10):
        site.ask()
    assert site.counters.total("weir_tenant_requests_total", "stub") == total + 10


def test_a_taken_port_is_refused_unless_our_own_drain_there() -> None:
    """SO_REUSEPORT would share a port with a stranger in silence; the error says what to do."""
    (one,) = bind("127.0.0.1", 0, 1)
    try:
        port = one.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port} is in use by another process"):
            bind("127.0.0.1", port, 2)
        both = bind("127.0.0.1", port, 2, shared=True)
        assert {each.getsockname()[1] for each in both} == {port}
        for each in both:
            each.close()
    finally:
        one.close()
    with pytest.raises(CannotListen, match="is not an address of this host"):
        bind("no.such.host.invalid", 1, 1)
