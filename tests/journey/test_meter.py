"""Step 7: each call that was opened is one row that says the truth, whoever dies; and what strict durability means."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from proxy.bounds import REQUEST_ID_BYTES_KEPT
from proxy.journal import read_records
from tests.journey.calling import Client, chat, keys_verb, once
from tests.journey.conftest import House
from tests.journey.inside import inside
from tests.world.gateway import wait_for


class Disk:
    """An fdatasync that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.asked = threading.Event()
        self.free.set()

    def __call__(self, fd: int) -> None:
        self.asked.set()
        assert self.free.wait(100)
        os.fdatasync(fd)


@pytest.mark.parametrize("stream", [True, False])
def test_strict_holds_the_end_until_the_record_is_on_disk(tmp_path: Path, stream: bool) -> None:
    """While the disk has not taken the record the client has all but the end of its answer; then it gets the end."""
    disk = Disk()

    async def story() -> None:
        async with inside(tmp_path, strict=True, fdatasync=disk) as weir, Client(weir) as client:
            whole = await client.call(chat({"tokens": 3}, stream=stream))
            assert whole.whole
            disk.free.clear()
            disk.asked.clear()
            try:
                await client.send(chat({"tokens": 3, "delay_ms": 40}, stream=stream))
                assert await asyncio.to_thread(disk.asked.wait, 120), "the journal was not synced"
                # The disk has been asked, so the record was written. What may go out goes, and then there is silence.
                received = b""
                async with asyncio.timeout(120):
                    while stream and received.count(b'"content":"w') < 3:
                        received += await client.reader.read(65536)
                while not client.reader.at_eof():
                    try:
                        async with asyncio.timeout(0.3):
                            received += await client.reader.read(65536)
                    except TimeoutError:
                        break
                assert weir.upstream.ends()[1]["how"] == "complete"
                if stream:
                    assert received.count(b'"content":"w') == 3
                    assert b"[DONE]" not in received
                else:
                    assert len(received.partition(b"\r\n\r\n")[2]) < len(whole.payload)
                assert weir.epoch.synced_seq == 1
                assert len(read_records(weir.epoch.path, 1, 10, 1 << 20).records) == 1
            finally:
                disk.free.set()
            async with asyncio.timeout(120):
                ending = b"\r\n0\r\n\r\n" if stream else whole.payload[-20:]
                while not received.endswith(ending):
                    received += await client.reader.read(65536)
            assert weir.epoch.synced_seq == 2
            assert len(read_records(weir.epoch.path, 1, 10, 1 << 20).records) == 2
            # The connection is in order: the next answer follows.
            assert (await client.call(chat({"tokens": 1}))).whole

    asyncio.run(story())


def test_group_holds_nothing(tmp_path: Path) -> None:
    """Without strict durability the end does not wait for the disk: this is what the test above would not survive."""
    disk = Disk()

    async def story() -> None:
        async with inside(tmp_path, fdatasync=disk) as weir, Client(weir) as client:
            disk.free.clear()
            try:
                for stream in (True, False):
                    assert (await client.call(chat({"tokens": 3}, stream=stream))).whole
                assert weir.epoch.synced_seq == 0
            finally:
                disk.free.set()

    asyncio.run(story())


def test_who_and_what_for(trio: House) -> None:
    """The row names the body's user, the key's tags, and the one tag that its tenant lets callers set by a header."""
    made = keys_verb(trio.weir, "create", "--tenant", "acme", "--tag", "project=apollo", "--tag", "stage=test")
    request_id = uuid.uuid4().hex
    body = chat({"tokens": 1}, user="user-42 é")
    answer = asyncio.run(once(trio.weir, body, made["key"], x_team="blue", x_other="red", x_request_id=request_id))
    assert answer.status == 200
    row = trio.row(request_id)
    assert (row["tenant"], row["key_id"], row["user"]) == ("acme", made["key_id"], "user-42 é")
    assert tags_of(row) == {"project": "apollo", "stage": "test", "x-team": "blue"}  # header names have no case
    assert (row["endpoint"], row["model"], row["attempts"]) == ("chat.completions", "m1", 1)


def tags_of(row: dict[str, Any]) -> dict[str, str]:
    """The row's tags, however the database keeps them."""
    tags = json.loads(row["tags"]) if isinstance(row["tags"], str) else row["tags"]
    return {str(name): str(value) for name, value in (tags.items() if isinstance(tags, dict) else tags)}


def test_a_request_id_is_kept_or_made(trio: House) -> None:
    """The client's id comes back and stands in the row; without one, or with too long a one, Weir makes one."""

    async def story() -> dict[str, str]:
        said = {}
        async with Client(trio.weir) as client:
            for name, headers in {
                "kept": {"x_request_id": "client-1.a_b"},
                "none": {},
                "longest": {"x_request_id": "l" * 128},
                "too long": {"x_request_id": "t" * 129},
            }.items():
                answer = await client.call(chat({"tokens": 1, "prompt_tokens": 77, "keep": True}), **headers)
                assert answer.status == 200
                said[name] = answer.headers["x-request-id"]
        return said

    said = asyncio.run(story())
    assert said["kept"] == "client-1.a_b"
    assert said["none"].startswith("req_")
    assert said["longest"] == "l" * 128
    assert said["too long"].startswith("req_")
    assert len(set(said.values())) == 4
    for request_id in said.values():
        assert trio.row(request_id[:REQUEST_ID_BYTES_KEPT])["prompt_tokens"] == 77
        assert [event["id"] for event in trio.asked(request_id)] == [request_id]


@pytest.mark.parametrize("turn", range(2))
def test_a_killed_worker_leaves_honest_rows(trio: House, turn: int) -> None:
    """SIGKILL in mid-stream: each client sees a cut, its row says crash with no less than it received, others go on."""
    count = 40  # on three workers: that one of them has none does not happen

    async def story() -> dict[str, tuple[bytes, bool]]:
        clients = [Client(trio.weir) for _ in range(count)]
        ids = [f"killed-{turn}-{number}" for number in range(count)]
        victim = sorted(trio.weir.processes("worker"))[turn % 3]
        under_way: set[str] = set()

        async def one(client: Client, request_id: str) -> tuple[bytes, bool]:
            payload = b""
            async with client:
                await client.send(chat({"tokens": 100, "delay_ms": 40}, stream=True), x_request_id=request_id)
                status, headers = await client.head()
                assert status == 200
                try:
                    async for part in client.parts(headers):
                        payload += part
                        if payload.count(b"\n\n") > 3:
                            under_way.add(request_id)
                except (EOFError, OSError):
                    return payload, False
                return payload, True

        calls = [asyncio.create_task(one(client, request_id)) for client, request_id in zip(clients, ids, strict=True)]
        await asyncio.to_thread(wait_for, "every stream to be under way", lambda: len(under_way) == count)
        os.kill(victim, signal.SIGKILL)
        return dict(zip(ids, await asyncio.gather(*calls), strict=True))

    received = asyncio.run(story())
    cut = {request_id for request_id, (_, whole) in received.items() if not whole}
    assert 0 < len(cut) < count
    trio.upstream.wait_idle()
    sent = {event["n"]: event for event in trio.upstream.events() if event["event"] == "end"}
    for request_id, (payload, whole) in received.items():
        row = trio.row(request_id)
        assert row["termination"] == ("complete" if whole else "crash")
        assert len(payload) <= row["relayed_bytes"]
        assert payload.count(b"\n\n") <= row["relayed_frames"]
        asked = trio.asked(request_id)
        assert len(asked) == 1
        assert row["relayed_bytes"] <= sent[asked[0]["n"]]["bytes"]
        assert (row["source"], row["completion_tokens"] > 0) == ("provider" if whole else "estimated", True)
    wait_for("the worker to be replaced", lambda: len(trio.weir.processes("worker")) == 3 and trio.weir.ready())
    answers = asyncio.run(again(trio))
    assert answers == {200}
    wait_for("nothing to be held", lambda: trio.weir.held() == (0, 0))


async def again(house: House) -> set[int]:
    """The statuses of thirty calls on connections of their own."""
    answers = await asyncio.gather(*(once(house.weir, chat({"tokens": 1})) for _ in range(30)))
    return {answer.status for answer in answers}
