"""Settings: the process part of weir.yaml with absolute paths and stated defaults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy import bounds, settings
from proxy.policy.problems import PolicyErrors
from tests.policy.gallery import BASE, environment, lay_out


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should keep everything beside the configuration directory, wherever the command is started."""
    config = lay_out(BASE, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for where, given in ((tmp_path, Path("config")), (tmp_path / "elsewhere", Path("../config")), (config, config)):
        monkeypatch.chdir(where)
        found = settings.load(given, {})
        assert found.data_dir == tmp_path / ".data"
        assert found.database == f"sqlite:///{tmp_path}/.data/weir.db"
        assert (found.listen.host, found.listen.port, found.listen.tls) == ("127.0.0.1", 8080, None)
        assert (found.metrics.host, found.metrics.port) == ("127.0.0.1", 9091)
        assert (found.redis, found.workers, found.pepper, found.log_requests) == (None, 1, None, "json")
        assert found.drain_seconds == bounds.DRAIN_SECONDS_DEFAULT
        assert (found.journal.sync_ms, found.journal.durability) == (50, "group")
        assert (found.journal.slots, found.journal.segment_bytes) == (bounds.SLOTS_PER_WORKER, bounds.SEGMENT_BYTES)


def test_settings_are_handed_on_whole(tmp_path: Path) -> None:
    """Should be read from the descriptor as they were, however often, whatever the files say by then."""
    case = BASE.parent / "every-key"
    config = lay_out(case, tmp_path)
    found = settings.load(config, environment(case))
    (config / "weir.yaml").write_text("workers: none\n")
    descriptor = settings.hand_on(found)
    try:
        for _ in range(2):
            assert settings.of_part(config, descriptor) == found
        with pytest.raises(PolicyErrors):
            settings.of_part(config, None)
        os.pwrite(descriptor, b'{"listening":', 0)  # a supervisor that knows other ones
        with pytest.raises(PolicyErrors):
            settings.of_part(config, descriptor)
    finally:
        os.close(descriptor)


def test_every_key(tmp_path: Path) -> None:
    """Should carry every key of the process part."""
    case = BASE.parent / "every-key"
    found = settings.load(lay_out(case, tmp_path), environment(case))
    assert found.listen.tls is not None
    assert (found.listen.tls.certificate, found.listen.tls.key) == (
        f"{tmp_path}/tls/cert.pem",
        f"{tmp_path}/tls/key.pem",
    )
    assert (found.data_dir, found.database) == (Path("/var/lib/weir"), "postgresql://weir:p@db.internal/weir")
    assert found.redis == "rediss://:r@redis.internal:6379/0"
    assert (found.workers, found.drain_seconds, found.retention_days, found.log_requests) == (4, 12.5, 30, "off")
    assert (found.journal.sync_ms, found.journal.max_bytes, found.journal.durability) == (20, 1 << 32, "strict")
    assert found.pepper == "${PEPPER}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("sqlite:///var/usage.db", "sqlite:///{base}/var/usage.db"),
        ("sqlite:////srv/usage.db", "sqlite:////srv/usage.db"),
        ("postgresql://db/weir", "postgresql://db/weir"),
        ("${DATABASE_URL:-}", "sqlite:///{base}/.data/weir.db"),
    ],
)
def test_database_addresses(written: str, expected: str, tmp_path: Path) -> None:
    """Should make a relative SQLite path absolute and leave everything else."""
    config = lay_out(BASE, tmp_path)
    (config / "weir.yaml").write_text((BASE / "weir.yaml").read_text() + f"database: {written}\n")
    assert settings.load(config, {}).database == expected.format(base=tmp_path)


def test_policy_files_are_not_its_matter(tmp_path: Path) -> None:
    """Should load beside a broken plan: a process that only needs its address can start."""
    config = lay_out(BASE, tmp_path)
    (config / "plans.yaml").write_text("plans: [")
    assert settings.load(config, {}).workers == 1
    (config / "weir.yaml").unlink()
    with pytest.raises(PolicyErrors, match=r"weir\.yaml:1: no such file"):
        settings.load(config, {})
