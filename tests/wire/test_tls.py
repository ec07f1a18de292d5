"""TLS towards upstreams: an own authority is trusted, nothing else is, and the name must be the certificate's."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from proxy import _wire as wire
from proxy.errors import Refusal
from proxy.upstreams.pool import Pool
from proxy.upstreams.target import Target
from tests.wire import answers
from tests.wire.rig import LOOPS, run, settle, upstream
from tests.wire.test_pool import ask, obliging


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, other.pem (another authority), and server.pem with server.key for `localhost` and `127.0.0.1`."""
    folder = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        _openssl(
            folder, "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN=test {name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    _openssl(folder, "req", *key[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    _openssl(
        folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "server.pem", "-days", "2", "-extfile", "names",
    )  # fmt: skip
    return folder


def served(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


def pool_to(url: str, ca_bundle: Path | None) -> Pool:
    return Pool(Target(url, "k"), max_connections=2, max_waiting=0, connect_ms=10_000, ca_bundle=ca_bundle)


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_own_authority(kind: str, host: str, certificates: Path) -> None:
    """With the authority's bundle answers arrive, and the connection is kept and used again."""

    async def main() -> None:
        async with upstream(obliging, tls=served(certificates)) as server:
            pool = pool_to(f"https://{host}:{server.port}/v1", certificates / "ca.pem")
            connection = await pool.connect()
            for _ in range(5):
                relay = await ask(connection)
                assert (relay.ending, relay.usage, relay.bytes) == (wire.COMPLETE, (11, 0, 3, 0, 0), len(answers.BODY))
                assert pool.take() is connection
            pool.give_back(connection)
            assert server.connections == 1
            pool.close()
            await settle()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize(("host", "bundle"), [("localhost", "other.pem"), ("localhost", None), ("127.0.0.2", "ca.pem")])
def test_not_trusted(kind: str, host: str, bundle: str | None, certificates: Path) -> None:
    """A certificate of another authority, or for another name, makes the upstream unreachable; no place is lost."""

    async def main() -> None:
        address = "127.0.0.1" if host == "localhost" else host
        async with upstream(obliging, tls=served(certificates), host=address) as server:
            pool = pool_to(f"https://{host}:{server.port}/v1", certificates / bundle if bundle else None)
            for _ in range(2):
                with pytest.raises(Refusal) as refused:
                    await pool.connect()
                assert refused.value.code == "upstream_unreachable"
            assert (pool.active, pool.idle) == (0, 0)
            await settle()

    run(kind, main)


@pytest.mark.parametrize("kind", LOOPS)
def test_upstream_that_speaks_no_tls(kind: str) -> None:
    """A plain upstream behind https is unreachable, and the attempt leaves nothing."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def main() -> None:
        async with upstream(plain) as server:
            pool = pool_to(f"https://127.0.0.1:{server.port}/v1", None)
            with pytest.raises(Refusal) as refused:
                await pool.connect()
            assert refused.value.code == "upstream_unreachable"
            assert pool.active == 0
            await settle()

    run(kind, main)


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_bundle_that_cannot_be_used(content: str | None, tmp_path: Path) -> None:
    """A missing or empty bundle is refused when the pool is made, with its path."""
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(ValueError, match=r"ca\.pem: not a usable bundle"):
        pool_to("https://localhost/v1", bundle)
