"""One connection without a network, and a front in a house of its own, on each kind of loop."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.front.fakes import Bench
from tests.front.listening import Story, Tell, listening
from tests.journey.inside import inside
from tests.wire.rig import LOOPS, run


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Closed when the test ends."""
    made = Bench()
    yield made
    made.close()


@pytest.fixture(params=LOOPS)
def tell(request: pytest.FixtureRequest, tmp_path: Path) -> Tell:
    """Runs a story; afterwards no task may be left."""

    def told(story: Story) -> None:
        async def main() -> None:
            async with inside(tmp_path) as house, listening(house) as (front, weir):
                await story(front, weir)

        run(request.param, main)

    return told


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(of a server that is called localhost, of a client that trusts it)."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost -keyout server.key -out server.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=60)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    return server, ssl.create_default_context(cafile=str(folder / "server.pem"))
