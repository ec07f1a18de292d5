"""TLS on both sides: https for clients by the policy's certificate, and upstreams of an authority of their own."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.journey.calling import Answer, Client, chat
from tests.world.gateway import Gateway, wait_for
from tests.world.upstream import Upstream


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, other.pem (another authority), and server.pem with server.key for `localhost` and `127.0.0.1`."""
    folder = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "other"):
        _openssl(
            folder, "req", "-x509", *key, "-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.pem",
            "-subj", f"/CN=test {name}", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    _openssl(folder, "req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    _openssl(
        folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "server.pem", "-days", "2", "-extfile", "names",
    )  # fmt: skip
    return folder


class Served(threading.Thread):
    """The scripted upstream behind TLS, in a thread of its own."""

    def __init__(self, certificates: Path) -> None:
        super().__init__()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        self.url = ""
        self.asked = 0
        self.ready = threading.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.end = asyncio.Event()
        async with Upstream(tls=self.tls) as upstream:
            self.url = upstream.url
            self.ready.set()
            await self.end.wait()
            self.asked = len(upstream.requests)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.end.set)
        self.join(120)


@pytest.fixture(scope="module")
def weir(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[Gateway]:
    """A Weir that serves https, with one upstream entry that knows the authority, and two that do not."""
    served = Served(certificates)
    served.start()
    try:
        assert served.ready.wait(120)
        names = {"known": "ca.pem", "wrong": "other.pem", "system": None}
        settings = {
            "listen": {
                "tls": {"certificate": str(certificates / "server.pem"), "key": str(certificates / "server.key")}
            },
            "upstreams": {
                name: {"url": served.url} | ({"ca_bundle": str(certificates / bundle)} if bundle else {})
                for name, bundle in names.items()
            },
            "models": {name: {"upstream": name, "unpriced": True} for name in names},
            "drain_seconds": 600,
        }
        made = Https(tmp_path_factory.mktemp("https"), served.url, settings=settings)
        made.certificates = certificates
        with made:
            yield made
            made.assert_at_rest()
    finally:
        served.stop()
    assert served.asked == 6  # the answered calls of this module; a wrong authority never lets a request through


class Https(Gateway):
    """A gateway whose own port speaks TLS, so that its readiness is asked on the metrics port alone."""

    certificates: Path

    def ready(self) -> bool:
        """Whether the host says that it serves, and the listener shakes hands."""
        if self.get("/readyz")[0] != 200:
            return False
        try:
            return asyncio.run(call(self, None, "/readyz")).status == 200
        except OSError:
            return False


async def call(weir: Https, body: bytes | None, path: str = "/v1/chat/completions") -> Answer:
    """One request over TLS, trusting the test's authority alone."""
    trust = ssl.create_default_context(cafile=weir.certificates / "ca.pem")
    async with Client(weir, weir.key or "none", tls=trust) as client:
        return await client.call(body, path)


def test_the_sdk_over_https(weir: Https) -> None:
    """The official SDK streams through TLS on both sides, and the row is right."""
    with httpx2.Client(verify=ssl.create_default_context(cafile=weir.certificates / "ca.pem")) as http:
        client = openai.OpenAI(base_url=f"https://localhost:{weir.port}/v1", api_key=weir.key, http_client=http)
        chunks = client.chat.completions.create(
            model="known", messages=[{"role": "user", "content": "one two three"}], stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "".join(
            f"w{n} " for n in range(8)
        )
    (row,) = wait_for("its row", weir.rows)
    assert (row["termination"], row["prompt_tokens"], row["completion_tokens"]) == ("complete", 3, 8)


def test_many_answers_over_one_connection(weir: Https) -> None:
    """A kept connection over TLS serves call after call."""

    async def story() -> None:
        trust = ssl.create_default_context(cafile=weir.certificates / "ca.pem")
        async with Client(weir, tls=trust) as client:
            for _ in range(5):
                answer = await client.call(chat({"tokens": 2}, "known", stream=True))
                assert (answer.status, answer.whole) == (200, True)

    asyncio.run(story())


@pytest.mark.parametrize("model", ["wrong", "system"])
def test_an_upstream_nobody_vouches_for(weir: Https, model: str) -> None:
    """An upstream whose certificate the entry's authorities did not sign is unreachable; the credential stays here."""
    answer = asyncio.run(call(weir, chat(model=model)))
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert answer.headers["x-weir-error"] == "upstream"


def test_old_and_plain_clients_are_turned_away(weir: Https) -> None:
    """Plain HTTP on the TLS port gets no answer, and TLS below 1.2 no handshake; neither disturbs the others."""

    async def story() -> None:
        with pytest.raises((OSError, EOFError)):
            async with Client(weir) as client:
                await client.call(None, "/v1/models")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        old.verify_mode = ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            async with Client(weir, tls=old):
                pass
        assert (await call(weir, None, "/v1/models")).status == 200

    asyncio.run(story())
