"""The gallery of configurations in tests/vectors/policy: a case holds the files in which it differs from good/base."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

VECTORS = Path(__file__).parent.parent / "vectors" / "policy"
BASE = VECTORS / "good" / "base"
EXAMPLE = Path(__file__).parent.parent.parent / "config"
NOTES = ("expected.txt", "warnings.txt", "environment.txt")  # of a case; not part of its configuration


def cases(kind: str) -> list[Path]:
    """The cases of `good` or `bad`, sorted."""
    return sorted(path for path in (VECTORS / kind).iterdir() if path != BASE)


def lay_out(case: Path, directory: Path) -> Path:
    """Makes `directory`/config of a case, with the files that cases may name in `tls`; returns it."""
    config = directory / "config"
    shutil.copytree(BASE, config)
    shutil.copytree(case, config, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOTES))
    (directory / "tls").mkdir()
    for name, content in certificate().items():
        (directory / "tls" / name).write_bytes(content)
    return config


@cache
def certificate() -> dict[str, bytes]:
    """A certificate, its key, another key, and a file that is none of these."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gallery")])
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder(name, name, keys[0].public_key(), 1, begins, begins + timedelta(days=1))
        .sign(keys[0], hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    plain, other = (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys)
    return {"cert.pem": made, "key.pem": plain, "other.pem": other, "broken.pem": made[:80]}


def note(case: Path, name: str) -> str:
    """The text of one of a case's notes, "" without it."""
    path = case / name
    return path.read_text("utf-8") if path.exists() else ""


def environment(case: Path) -> dict[str, str]:
    """The variables under which a case is read."""
    return dict(line.split("=", 1) for line in note(case, "environment.txt").splitlines())
