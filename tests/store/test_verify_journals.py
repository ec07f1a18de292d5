"""`weir usage verify` with a data directory: a dead worker's journal is a finding until it is recovered and flushed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy import clock
from proxy._fastpath import Arena
from proxy.cli import main
from proxy.epochs import live_and_dead, recover
from proxy.flush.fold import Batch
from proxy.journal import read_records
from proxy.record import rebuild
from proxy.store.redis import directory_id
from proxy.store.store import Store, migrate
from tests.store.records import run

CONFIG = """\
data_dir: data
upstreams: {north: {url: "http://127.0.0.1:1/v1"}}
models: {small: {upstream: north}}
"""
WORKER = Path(__file__).parents[1] / "processes" / "journal_worker.py"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose data directory is beside it, with a migrated database."""
    directory = tmp_path / "config"
    directory.mkdir()
    (directory / "weir.yaml").write_text(CONFIG)
    run(migrate(f"sqlite:///{data_dir(directory)}/weir.db"))
    return directory


def data_dir(config: Path) -> Path:
    """Where settings find it."""
    from proxy import settings

    return settings.load(config).data_dir


async def persist(config: Path) -> None:
    """As a keeper without Redis: what is synced of every epoch goes to the database."""
    data = data_dir(config)
    store = Store.open(f"sqlite:///{data}/weir.db")
    for one in live_and_dead(data / "journal"):
        found = read_records(one.path, 1, 100, 1 << 20)
        await store.persist([Batch(one.epoch, found.first, found.last, list(found.records), directory_id(data))])
    await store.close()


def test_an_epochs_way_through_verify(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alive: green. Killed: not recovered. Recovered and flushed: green. Its journal lost before that: a finding."""
    data = data_dir(config)

    def verify() -> tuple[int, list[str]]:
        code = main(["usage", "verify", "--json", "--config", str(config)])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return code, [f"{one['kind']}: {one['sentence']}" for one in found["findings"]]

    def worker(check: Callable[[], None]) -> None:
        words = [sys.executable, str(WORKER), str(data), "5", "2"]
        environment = dict(os.environ, PYTHONPATH=str(WORKER.parents[2]))
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as process:
            try:
                assert process.stdout is not None
                assert b"epoch" in process.stdout.readline()
                run(persist(config))
                check()
            finally:
                process.kill()

    worker(lambda: _equal(verify(), (0, [])))
    dead = "epoch: the epoch's process is gone and its journal is not recovered: is a keeper running?"
    assert verify() == (1, [dead])
    arena = Arena(str(data / "arena"), clock.boot_id())
    for one in live_and_dead(data / "journal"):
        assert recover(one.path, arena, rebuild) == 2
    arena.close()
    run(persist(config))
    assert verify() == (0, [])
    worker(lambda: None)
    shutil.rmtree(next(one.path for one in live_and_dead(data / "journal") if not one.recovered))
    lost = "epoch: the epoch has no end, and its journal is gone: calls in flight at its death are lost"
    assert verify() == (1, [lost])


def _equal(found: object, expected: object) -> None:
    assert found == expected
