"""One Weir with two workers and one scripted upstream for all tests of the journey; each test finds its own rows."""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers

from tests.world.gateway import Gateway, wait_for
from tests.world.process import UpstreamProcess

RATED = {"requests_per_minute": 6000, "requests_burst": 1000}  # full again in ten seconds of nobody asking


JOURNAL_FILES_MORE = 4
BURST_FITS = 37  # the prompt tokens of one call in test_tokens.py


class House:
    """A running Weir with its upstream, and the few things that tests of the journey ask of them."""

    def __init__(self, weir: Gateway, upstream: UpstreamProcess) -> None:
        self.weir = weir
        self.upstream = upstream

    def row(self, request_id: str) -> dict[str, Any]:
        """The one usage row of this request, once the database has it."""
        rows = wait_for(f"a row of {request_id}", lambda: self.rows(request_id))
        assert len(rows) == 1, rows
        return dict(rows[0])

    def rows(self, request_id: str) -> list[dict[str, Any]]:
        """The rows of this request so far."""
        return [row for row in self.weir.rows() if row["request_id"] == request_id]

    def asked(self, request_id: str) -> list[dict[str, Any]]:
        """What the upstream's ledger has of this request: its request events."""
        return [e for e in self.upstream.events() if e["event"] == "request" and e["id"] == request_id]

    def raw(self, data: bytes, *, seconds: float = 120, half_close: bool = False) -> bytes:
        """Sends bytes on a connection of their own and returns everything until the other side ends it.

        TimeoutError when it is left open and silent: a client that waits for its end would wait for ever.
        """
        with socket.create_connection(("127.0.0.1", self.weir.port), timeout=seconds) as connection:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    def post(
        self,
        body: bytes | dict[str, Any],
        *,
        path: str = "/v1/chat/completions",
        key: str | None = None,
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes, str]:
        """(status, headers in lower case, body, request id) of one request on a connection of its own."""
        request_id = f"test-{uuid.uuid4().hex[:16]}"
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {
            "host": "weir",
            "authorization": f"Bearer {self.weir.key if key is None else key}",
            "content-type": "application/json",
            "content-length": str(len(raw)),
            "x-request-id": request_id,
            "connection": "close",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        status, answered, payload = parse(self.raw(head.encode() + raw))
        return status, answered, payload, request_id


def read_all(connection: socket.socket) -> bytes:
    """Until the end or a reset. TimeoutError after silence for the socket's timeout."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers in lower case, payload without chunk framing). The payload may be cut short; then so it is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding") != "chunked":
        return int(lines[0].split()[1]), headers, body
    parts = []
    at = 0
    while at < len(body):
        end = body.find(b"\r\n", at)
        size = body[at:end] if end >= 0 else b""
        if not size or not int(size, 16):
            break
        at = end + 2 + int(size, 16)
        parts.append(body[end + 2 : at])
        at += 2
    payload = b"".join(parts)
    return int(lines[0].split()[1]), headers, payload


def chat(script: dict[str, Any] | None = None, prompt: str = "one two three", **more: Any) -> dict[str, Any]:
    """A chat request whose upstream follows the script."""
    content = (f"@{json.dumps(script)} " if script else "") + prompt
    return {"model": "m1", "messages": [{"role": "user", "content": content}], **more}


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Weir as `weir proxy` with two workers on SQLite; at the end nothing may be open, held or wrong in the books."""
    directory: Path = tmp_path_factory.mktemp("journey")
    with UpstreamProcess(directory / "ledger.jsonl") as upstream:
        timeouts = {"connect_seconds": 5, "first_byte_seconds": 5, "idle_seconds": 3, "total_seconds": 6}
        settings = {
            "upstreams": {
                "brief": {"url": upstream.url, "timeouts": timeouts},
                "nowhere": {"url": "http://127.0.0.1:1/v1"},
            },
            "models": {
                "brief": {"upstream": "brief", "unpriced": True},
                "renamed": {"upstream": "mock", "model": "its-other-name", "unpriced": True},
                "priced": {"upstream": "mock"},
                "unreachable": {"upstream": "nowhere", "unpriced": True},
                "chat-only": {"upstream": "mock", "endpoints": ["chat.completions"], "unpriced": True},
                "org/model-1": {"upstream": "mock", "unpriced": True},
                "tight": {"upstream": "mock", "unpriced": True, "limits": {"requests_per_minute": 2}},
                "narrow": {"upstream": "mock", "unpriced": True, "limits": {"tokens_per_minute": 100}},
                "single": {"upstream": "mock", "unpriced": True, "limits": {"concurrency": 1}},
            },
        }
        weir = Gateway(directory, upstream.url, workers=2, settings=settings)
        price = {"prompt": "2.50", "cached": "1.25", "completion": "10"}
        weir.write("prices.yaml", {"version": "test-1", "models": {"priced": price}})
        with weir:
            house = House(weir, upstream)
            house.post(chat())
            before = weir.open_files("worker")
            yield house
            wait_for("clients' connections to be closed", lambda: not weir.connections())
            # The journal may have moved on to another segment; nothing else opens a file and keeps it.
            after = weir.open_files("worker")
            assert all(after[pid] <= count + JOURNAL_FILES_MORE for pid, count in before.items() if pid in after)
            weir.assert_at_rest()


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Weir with three workers, for what must hold across them; at the end nothing may be held or wrong in the books."""
    directory: Path = tmp_path_factory.mktemp("trio")
    with UpstreamProcess(directory / "ledger.jsonl") as upstream:
        settings = {
            "models": {
                "chat-only": {"upstream": "mock", "endpoints": ["chat.completions"], "unpriced": True},
                "rated": {"upstream": "mock", "unpriced": True, "limits": RATED},
            },
        }
        weir = Gateway(directory, upstream.url, workers=3, settings=settings, tenant={"tag_header": "X-Team"})
        for name, rights in {
            "rated": {"limits": RATED},
            "rated-keys": {"key_limits": RATED},
            "few": {"limits": {"concurrency": 7}},
            "five": {"limits": {"requests_per_minute": 1, "requests_burst": 5, "tokens_per_minute": 100_000}},
            "tokens": {"limits": {"tokens_per_minute": 1000}},
        }.items():
            weir.write(f"tenants/{name}.yaml", {"name": name, "plan": "all", **rights})
        with weir:
            yield House(weir, upstream)
            weir.assert_at_rest()


def trained(path: Path) -> Path:
    """A small HuggingFace tokenizer.json, trained on this file."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([Path(__file__).read_text("utf-8")], trainer)
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Weir with one worker, whose ratios a test can follow, and models of all kinds of tokenizers.

    Those beginning with `quiet-` go to an upstream that is not asked for usage, and so says none for a stream.
    """
    directory: Path = tmp_path_factory.mktemp("counting")
    with UpstreamProcess(directory / "ledger.jsonl") as upstream:
        quiet = {"upstream": "quiet", "unpriced": True}
        narrow = {"upstream": "quiet", "model": "gpt-4o", "unpriced": True}
        settings = {
            "drain_seconds": 2,
            "upstreams": {"mock": {}, "quiet": {"url": upstream.url, "ask_usage": False}},
            "models": {
                "quiet-4o": {**quiet, "model": "gpt-4o-2024-08-06"},
                "quiet-4": {**quiet, "model": "gpt-4"},
                "quiet-thinker": {**quiet, "model": "o3-mini"},
                "quiet-named": {**quiet, "tokenizer": "cl100k_base", "family": "gpt-4"},
                "unknown-1": {**quiet, "model": "its-own"},
                "unknown-2": {**quiet, "model": "its-own"},
                "burst-1000": {**narrow, "limits": {"tokens_per_minute": 1, "tokens_burst": 1000}},
                "burst-fits": {**narrow, "limits": {"tokens_per_minute": 1, "tokens_burst": BURST_FITS}},
                "burst-short": {**narrow, "limits": {"tokens_per_minute": 1, "tokens_burst": BURST_FITS - 1}},
                "from-file": {**quiet, "tokenizer": f"file:{trained(directory / 'tokenizer.json')}"},
                "twice": {**narrow, "limits": {"requests_per_minute": 2}},
            },
        }
        weir = Gateway(directory, upstream.url, settings=settings)
        with weir:
            yield House(weir, upstream)
            weir.assert_at_rest()
