"""The two files of the audit log beside the database: the key that signs anchors, and the anchors.

`audit.key` is 32 random bytes, readable by its owner. `audit.anchors.jsonl` only grows; the keeper alone writes it,
under its lock. Copies of the anchors and of the public key, kept elsewhere, bear witness against this host too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from proxy import failpoint
from proxy.identity import pepper

KEY = "audit.key"
ANCHORS = "audit.anchors.jsonl"
_TAIL_BYTES = 16 * 1024  # some forty lines: room for two and for one that was cut off


def private_key(data_dir: Path) -> Ed25519PrivateKey:
    """The signing key of this data directory; made on first use. Raises ValueError when its file cannot be trusted."""
    return Ed25519PrivateKey.from_private_bytes(pepper.ensure_file(data_dir / KEY))


def public_key(data_dir: Path) -> bytes | None:
    """The public half, 32 bytes; None when no key was made yet. Raises ValueError as `private_key` does."""
    if not (data_dir / KEY).exists():
        return None
    return private_key(data_dir).public_key().public_bytes_raw()


def parse_public(text: str) -> bytes:
    """A public key written as hexadecimal digits. Raises ValueError."""
    try:
        public = bytes.fromhex(text.strip())
    except ValueError:
        public = b""
    if len(public) != 32:
        raise ValueError(f"public key {text[:80]!r}: must be 64 hexadecimal digits, as `weir audit key` prints them")
    return public


def read_lines(path: Path) -> Sequence[bytes]:
    """The anchors' lines with their ends; none when there is no such file."""
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return ()


def mend(path: Path) -> list[bytes]:
    """Cuts off an append that was itself cut off. Returns the last two lines, or as many as there are."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        size = os.fstat(fd).st_size
        start = max(0, size - _TAIL_BYTES)
        content = os.pread(fd, _TAIL_BYTES, start)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(fd, start + whole)
            os.fsync(fd)
        return content[:whole].splitlines(keepends=True)[-2:]
    finally:
        os.close(fd)


def append(path: Path, line: bytes) -> None:
    """Adds one line; on disk when it returns. Raises OSError; a line written in part is cut off again."""
    fresh = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            if os.write(fd, line) != len(line):
                raise OSError(f"{path}: written in part")
            failpoint.reach("audit.before_sync")
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
    if fresh:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
