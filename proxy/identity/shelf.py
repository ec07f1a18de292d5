"""The last good key set of each issuer in the data directory: for a worker that starts while the issuer is away.

Public keys alone, whose readers judge them anew. A file is replaced whole; one that is damaged counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from proxy import bounds
from proxy.identity.claims import Json, strict_json
from proxy.policy.snapshot import Issuer

NAME = "issuers"


class Kept(NamedTuple):
    """A key set (RFC 7517, section 5), and when its fetch began (wall clock)."""

    document: Json
    fetched_us: int


class Shelf:
    """One to a data directory; processes share it. Every call reads or writes one small file."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / NAME

    def __repr__(self) -> str:
        return f"[Shelf {self._directory}]"

    def put(self, issuer: Issuer, kept: Kept) -> None:
        """Keeps the set in place of the one before. Raises OSError."""
        text = json.dumps({"issuer": issuer.issuer, "fetched_us": kept.fetched_us, "document": kept.document}).encode()
        if len(text) > 2 * bounds.JWKS_BYTES_MAX:  # what was read was smaller; only odd escapes make it so long
            return
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._path(issuer)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(text)
        os.replace(partial, path)

    def get(self, issuer: Issuer) -> Kept | None:
        """What was kept of this issuer at this address; None when there is nothing that can be read."""
        try:
            with self._path(issuer).open("rb") as file:
                said = strict_json(file.read(2 * bounds.JWKS_BYTES_MAX + 1))
        except (OSError, ValueError):
            return None
        document, fetched_us = said.get("document"), said.get("fetched_us")
        if said.get("issuer") != issuer.issuer or not isinstance(document, dict) or not isinstance(fetched_us, int):
            return None
        return Kept(document, fetched_us)

    def drop(self, issuer: Issuer) -> None:
        """For an issuer that the policy no longer names."""
        with contextlib.suppress(OSError):
            self._path(issuer).unlink()

    def _path(self, issuer: Issuer) -> Path:
        # Also by the address of the keys: another one is another source, however the issuer calls itself.
        name = sha256(json.dumps([issuer.issuer, issuer.keys]).encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"
