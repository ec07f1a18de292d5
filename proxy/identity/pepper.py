"""Keys of the data directory: files of 32 random bytes, made once, readable by their owner.

`secret.key` is the one under which API keys are digested.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from proxy.policy import secrets as references

PEPPER_BYTES = 32


def of(data_dir: Path, reference: str | None) -> bytes:
    """The pepper that the settings name, or else the data directory's own. Raises ValueError or SecretMissing."""
    return ensure(data_dir) if reference is None else parse(references.resolve(reference), reference)


def ensure(data_dir: Path) -> bytes:
    """The pepper of this data directory; made on first use. Raises ValueError when the file is not ours to trust."""
    return ensure_file(data_dir / "secret.key")


def ensure_file(path: Path) -> bytes:
    """The bytes of a key's file; made on first use. Raises ValueError when the file is not ours to trust."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, secrets.token_bytes(PEPPER_BYTES).hex().encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(partial, path)  # fails when another process was first: its key then counts
        except FileExistsError:
            pass
        finally:
            os.unlink(partial)
    return read(path)


def read(path: Path) -> bytes:
    """Reads a key's file. Raises ValueError saying what is wrong with it."""
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path}: must be readable by its owner alone; run: chmod 600 {path}")
    return parse(path.read_bytes(), str(path))


def parse(text: bytes, where: str) -> bytes:
    """The pepper written as hexadecimal digits. Raises ValueError that names `where` and never the text."""
    try:
        pepper = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        raise ValueError(f"{where}: must hold {PEPPER_BYTES} bytes as hexadecimal digits") from None
    if len(pepper) != PEPPER_BYTES:
        raise ValueError(f"{where}: holds {len(pepper)} bytes, must hold {PEPPER_BYTES}")
    return pepper
