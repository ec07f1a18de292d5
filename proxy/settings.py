"""The process part of weir.yaml as one frozen value: where to listen, where to keep things, how many workers.

Settings are read once at start and handed on to every part; a reload changes the policy and not these. Errors are those
of the policy's loader.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from proxy.policy import load as files
from proxy.policy import process, schema
from proxy.policy.meaning import Judge
from proxy.policy.problems import PolicyErrors, Problem

_PASSWORD = re.compile(r"(://[^/@]*?:)[^@]*(@)")


class Settings(Struct, frozen=True):
    """Paths are absolute. `database` and `redis` may hold a password: they are never shown or logged.

    listen: host, port, tls (certificate, key: absolute paths) or None. metrics: host, port. control: as listen, with
    hosts and audience. journal: sync_ms, max_bytes, durability, slots, segment_bytes. pepper: a secret reference; None
    is secret.key in data_dir.
    """

    config_dir: str  # as given
    listen: process.Listen
    metrics: process.Metrics
    control: process.Control
    data_dir: Path
    database: str  # sqlite:///absolute/path or postgresql://…
    redis: str | None
    workers: int
    drain_seconds: float
    journal: process.Journal
    retention_days: int
    log_requests: Literal["json", "summary", "off"]
    pepper: str | None

    def __repr__(self) -> str:
        listen = f"{'https' if self.listen.tls else 'http'}://{self.listen.host}:{self.listen.port}"
        places = f"data in {self.data_dir}, database {masked(self.database)}, redis {masked(self.redis or 'none')}"
        return f"<Settings {self.config_dir}: {listen}, {self.workers} workers, {places}>"


def masked(url: str) -> str:
    """The URL without its password: the only form that may be shown."""
    return _PASSWORD.sub(r"\1***\2", url)


def load(config_dir: str | os.PathLike[str], env: Mapping[str, str] | None = None) -> Settings:
    """Settings of a configuration directory. Raises PolicyErrors with every problem of weir.yaml."""
    environment = os.environ if env is None else env
    problems: list[Problem] = []
    weir = files.read(Path(config_dir), files.WEIR, schema.WeirFile, environment, problems)
    base = files.base_of(config_dir)
    absent: files.Document[schema.PlansFile] = files.Document("", None, {}, {})
    prices: files.Document[schema.PricesFile] = files.Document("", None, {}, {})
    Judge(files.Files(weir, absent, prices, (), base), environment, problems, []).process()
    if problems or weir.value is None:
        raise PolicyErrors(problems)
    value = weir.value
    data_dir = base / value.data_dir
    listen = value.listen
    if listen.tls is not None:
        listen = msgspec.structs.replace(listen, tls=_tls(listen.tls, base))
    control = value.control
    if control.tls is not None:
        control = msgspec.structs.replace(control, tls=_tls(control.tls, base))
    return Settings(
        config_dir=str(config_dir),
        listen=listen,
        metrics=value.metrics,
        control=control,
        data_dir=data_dir,
        database=_database(value.database, data_dir, base),
        redis=value.redis,
        workers=value.workers,
        drain_seconds=value.drain_seconds,
        journal=value.journal,
        retention_days=value.retention.usage_days,
        log_requests=value.log.requests,
        pepper=value.pepper,
    )


def hand_on(settings: Settings) -> int:
    """The settings in a file in memory, for the parts that are started: its descriptor, to be inherited by them.

    A part that is started later must not go by files that have changed meanwhile: it would keep its journal elsewhere
    than the others, or not start at all. On no disk, since a database's password may be in it.
    """
    descriptor = os.memfd_create("weir-settings")
    os.write(descriptor, msgspec.json.encode(settings, enc_hook=str))
    return descriptor


def of_part(config_dir: str | os.PathLike[str], descriptor: int | None) -> Settings:
    """The settings that were handed on to this process; without a descriptor, those of the files. Raises PolicyErrors.

    A supervisor of another version may know other settings. Then the files decide, so that `weir restart` can bring
    the parts of a new version.
    """
    if descriptor is None:
        return load(config_dir)
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    try:
        return msgspec.json.decode(content, type=Settings, dec_hook=lambda kind, text: kind(text))
    except msgspec.DecodeError:
        return load(config_dir)


def _tls(tls: process.Tls, base: Path) -> process.Tls:
    return process.Tls(str(base / tls.certificate), str(base / tls.key))


def _database(url: str | None, data_dir: Path, base: Path) -> str:
    """The database's URL; a path in it becomes absolute, since the parts of a host may start in different places."""
    if url is None:
        return f"sqlite:///{data_dir / 'weir.db'}"
    scheme, _, rest = url.partition("://")
    return f"sqlite:///{base / rest.removeprefix('/')}" if scheme == "sqlite" and not rest.startswith("//") else url
