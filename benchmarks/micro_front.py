"""The client's side of the wire by itself: is a head ordinary, and a whole request up to where the journey begins."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from proxy._front import Client, usual

BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 900}]}).encode()
# As the official Python SDK sends it.
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    b"User-Agent: OpenAI/Python 2.8.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.0\r\n"
    b"X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
    b"X-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer wk_live_%b\r\nX-Stainless-Async: false\r\n"
    b"x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\nContent-Length: %d\r\n\r\n"
) % (b"0123456789" * 4, len(BODY))


class Nowhere(asyncio.Transport):
    """Takes everything and sends nothing."""

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Ending:
    """A front whose journeys end where they begin."""

    tick = 0
    draining = False

    def entered(self, client: Client, transport: asyncio.BaseTransport) -> None:
        pass

    def begin(self, exchange: Any) -> None:
        exchange.ended()


def test_usual(benchmark: Any) -> None:
    """A head of the official SDK: 17 header lines."""
    assert usual(HEAD) == (len(HEAD), len(BODY), True, False)
    benchmark(usual, HEAD)


def test_request(benchmark: Any) -> None:
    """The same request from its bytes to an exchange: judged, parsed by llhttp, its body whole."""
    loop = asyncio.new_event_loop()
    client = Client(Ending(), loop)  # type: ignore[arg-type]
    client.connection_made(Nowhere())
    benchmark(client.data_received, HEAD + BODY)
    loop.close()
