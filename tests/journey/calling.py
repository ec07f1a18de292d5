"""Many clients at once for tests of the journey: a small HTTP/1.1 client that hides nothing of what it received."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Self

from proxy.verbs import keys
from tests.world.gateway import Gateway

ANSWER_SECONDS_MAX = 120.0


class Answer(NamedTuple):
    """What one client received. `whole`: its framing says that this was all."""

    status: int
    headers: dict[str, str]  # names in lower case
    payload: bytes
    whole: bool

    @property
    def code(self) -> str:
        """The error's code, "" for an answer that is none."""
        return str(json.loads(self.payload)["error"]["code"]) if self.status >= 400 else ""


def chat(script: dict[str, Any] | None = None, model: str = "m1", prompt: str = "one two", **more: Any) -> bytes:
    """The body of a chat request whose upstream follows the script."""
    content = (f"@{json.dumps(script)} " if script else "") + prompt
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **more}).encode()


def request(body: bytes | None, key: str, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """A whole request; without a body a GET. `_` in a header's name stands for `-`; an empty value leaves it out."""
    lines = {"host": "weir", "authorization": f"Bearer {key}"}
    if body is not None:
        lines |= {"content-type": "application/json", "content-length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value) + "\r\n"
    return head.encode() + (body or b"")


class Client:
    """One connection: `async with Client(weir) as client`. Everything is bounded in time."""

    def __init__(self, weir: Gateway, key: str | None = None, tls: Any = None) -> None:
        self.port = weir.port
        self.key = weir.key if key is None else key
        self.tls = tls
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.tls, server_hostname="localhost" if self.tls else None
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, body: bytes | None, path: str = "/v1/chat/completions", **headers: str) -> None:
        """Sends a request and waits for nothing."""
        self.writer.write(request(body, self.key, path, **headers))
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """(status, headers) of the answer that is due."""
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in fields}

    async def parts(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """The payload as it comes, chunk by chunk. Ends only at the end that the framing promised; else EOFError."""
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            if headers.get("transfer-encoding") != "chunked":
                yield await self.reader.readexactly(int(headers["content-length"]))
                return
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)

    async def answer(self) -> Answer:
        """The answer that is due, as far as it came. EOFError or OSError when not even its head did."""
        status, headers = await self.head()
        return Answer(status, headers, *await self.rest(headers))

    async def rest(self, headers: dict[str, str]) -> tuple[bytes, bool]:
        """(the payload as far as it comes, whether that was all)."""
        payload = b""
        try:
            async for part in self.parts(headers):
                payload += part
        except (EOFError, OSError):
            return payload, False
        return payload, True

    async def call(self, body: bytes | None, path: str = "/v1/chat/completions", **headers: str) -> Answer:
        """One request and its answer."""
        await self.send(body, path, **headers)
        return await self.answer()


async def once(weir: Gateway, body: bytes | None, key: str | None = None, **headers: str) -> Answer:
    """One request on a connection of its own."""
    async with Client(weir, key) as client:
        return await client.call(body, **{"connection": "close", **headers})


def keys_verb(weir: Gateway, *arguments: str) -> dict[str, Any]:
    """`weir keys …` without the second that a Python of its own takes to start: what it printed as JSON."""
    parser = argparse.ArgumentParser()
    keys.add_arguments(parser)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = keys.run(parser.parse_args([*arguments, "--config", str(weir.config), "--json"]))
    assert code == 0, arguments
    made: dict[str, Any] = json.loads(printed.getvalue())
    return made
