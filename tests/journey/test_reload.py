"""A reload is whole or not at all, on every worker, under load; and what cannot be taken leaves the old policy."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import board, settings
from proxy._fastpath import Arena
from proxy.clock import boot_id
from proxy.verbs.reload import reload
from tests.journey.calling import Answer, Client, chat, keys_verb, once
from tests.journey.conftest import House
from tests.world.gateway import Gateway, wait_for

MODELS = 12
SEED = int(os.environ.get("WEIR_TEST_SEED", "0")) or random.randrange(1, 2**32)


@pytest.fixture
def weir(trio: House) -> Iterator[Gateway]:
    """The three workers' Weir; its policy is as it was when the test ends."""
    kept = {path: path.read_bytes() for path in sorted(trio.weir.config.rglob("*.yaml"))}
    yield trio.weir
    for path in trio.weir.config.rglob("*.yaml"):
        if path not in kept:
            path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)
    assert reload(settings.load(trio.weir.config)) == ""


def edition(weir: Gateway, number: int) -> dict[str, bytes]:
    """The files of one edition of the policy: every name and every limit in it says its number."""
    document: dict[str, Any] = json.loads((weir.config / "weir.yaml").read_text())
    names = [f"e{number}-{model}" for model in range(MODELS)]
    kept = {name: model for name, model in document["models"].items() if not re.match(r"e\d+-", name)}
    limits = {"requests_per_minute": 1_000_000 + number}
    document["models"] = kept | {name: {"upstream": "mock", "unpriced": True, "limits": limits} for name in names}
    plans = {"plans": {"all": {}, "edition": {"models": names}}}
    tenant = {"name": "edition", "plan": "edition", "limits": {"tokens_per_minute": 1_000_000 + number}}
    return {
        "weir.yaml": json.dumps(document).encode(),
        "plans.yaml": json.dumps(plans).encode(),
        "tenants/edition.yaml": json.dumps(tenant).encode(),
    }


def put(weir: Gateway, files: dict[str, bytes]) -> None:
    """Writes the files in place, as an editor does."""
    for name, content in files.items():
        (weir.config / name).write_bytes(content)


def number_of(answer: Answer) -> int:
    """Which edition a list of models is of. AssertionError when it is of more than one, or not whole."""
    names = [str(model["id"]) for model in json.loads(answer.payload)["data"]]
    editions = {name.partition("-")[0] for name in names}
    assert len(editions) == 1, names
    assert len(names) == MODELS, names
    return int(editions.pop()[1:])


def test_every_worker_serves_by_the_new_policy(weir: Gateway) -> None:
    """When `weir reload` has returned, no worker knows what was removed and each holds to the new limits."""
    put(weir, edition(weir, 0))
    process = settings.load(weir.config)
    assert reload(process) == ""
    key = keys_verb(weir, "create", "--tenant", "edition")["key"]

    async def look(number: int) -> None:
        answers = await asyncio.gather(*(once(weir, None, key, path="/v1/models") for _ in range(20)))
        assert {number_of(answer) for answer in answers} == {number}
        gone = await asyncio.gather(*(once(weir, chat(model=f"e{number - 1}-0"), key) for _ in range(20)))
        assert {answer.code for answer in gone} == {"model_not_found"}
        body = chat({"tokens": 1}, f"e{number}-0")
        for answer in await asyncio.gather(*(once(weir, body, key) for _ in range(20))):
            assert answer.status == 200
            assert answer.headers["x-ratelimit-limit-requests"] == str(1_000_000 + number)
            assert answer.headers["x-ratelimit-limit-tokens"] == str(1_000_000 + number)

    for number in range(1, 5):
        put(weir, edition(weir, number))
        if number == 1:  # the command as an operator types it
            assert "reloaded; version " in weir.weir("reload").stdout
        else:
            assert reload(process) == ""
        asyncio.run(look(number))


def test_a_stream_ends_by_the_policy_it_began_with(weir: Gateway) -> None:
    """A call under way keeps its route and is whole and metered, though its model and upstream's entry are removed."""
    put(weir, edition(weir, 0))
    process = settings.load(weir.config)
    assert reload(process) == ""
    key = keys_verb(weir, "create", "--tenant", "edition")["key"]

    async def story() -> None:
        async with Client(weir, key) as client:
            await client.send(chat({"tokens": 20, "delay_ms": 50}, "e0-0", stream=True), x_request_id="reload-stream")
            _, headers = await client.head()
            files = edition(weir, 1)
            document = json.loads(files["weir.yaml"])
            document["upstreams"]["mock"]["max_connections"] = 100  # another pool
            put(weir, files | {"weir.yaml": json.dumps(document).encode()})
            assert await asyncio.to_thread(reload, process) == ""
            _, whole = await client.rest(headers)
            assert whole
            gone = await client.call(chat(model="e0-0"))
            assert gone.code == "model_not_found"

    asyncio.run(story())
    rows = wait_for("its row", lambda: [r for r in weir.rows() if r["request_id"] == "reload-stream"])
    assert [row["termination"] for row in rows] == ["complete"]


def test_files_are_written_while_it_reloads(weir: Gateway) -> None:
    """An editor that saves in pieces and a keeper that reloads all the time: every answer is of one whole edition.

    The tenant's file may be newer than the plans for an instant; such a mixture names models that are not there and
    is refused. What workers serve never fails a call, and never mixes two editions.
    """
    put(weir, edition(weir, 0))
    process = settings.load(weir.config)
    assert reload(process) == ""
    key = keys_verb(weir, "create", "--tenant", "edition")["key"]
    chance = random.Random(SEED)
    arena = Arena(str(weir.data / "arena"), boot_id(), -1)
    keeper = next(iter(weir.processes("keeper")))
    seen: Counter[int] = Counter()
    done = asyncio.Event()

    def met() -> bool:
        return arena.word(board.RELOADS_FAILED) > failed and len(seen) > 2

    async def save() -> None:
        nonlocal newest
        while newest < 15 or not met():
            newest += 1
            for name, content in edition(weir, newest).items():
                half = chance.randrange(len(content))
                with open(weir.config / name, "wb", buffering=0) as file:
                    file.write(content[:half])
                    os.kill(keeper, signal.SIGHUP)
                    await asyncio.sleep(chance.random() * 0.03)
                    file.write(content[half:])
                os.kill(keeper, signal.SIGHUP)
                await asyncio.sleep(chance.random() * 0.03)
        done.set()

    async def ask() -> None:
        async with Client(weir, key) as client:
            while not done.is_set():
                number = number_of(await client.call(None, "/v1/models"))
                seen[number] += 1
                answer = await client.call(chat({"tokens": 1}, f"e{number}-3"))
                # Between the two requests the policy may have changed: then the name is gone, and nothing else.
                assert answer.status == 200 or answer.code == "model_not_found", answer

    async def story() -> None:
        async with asyncio.timeout(150):
            await asyncio.gather(save(), *(ask() for _ in range(12)))

    failed, newest = arena.word(board.RELOADS_FAILED), 0
    try:
        asyncio.run(story())
        assert arena.word(board.RELOADS_FAILED) > failed, f"no half-written file was met (seed {SEED})"
    finally:
        arena.close()
    assert len(seen) > 2, f"seed {SEED}: {seen}"
    assert reload(process) == ""
    assert number_of(asyncio.run(once(weir, None, key, path="/v1/models"))) == newest


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _misspell(path: Path) -> None:
    path.write_text(path.read_text().replace('"plans"', '"planes"'))


def _not_yaml(path: Path) -> None:
    path.write_text("plans: [unclosed\n")


BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("plans.yaml", _not_yaml, "plans.yaml:"),
    ("plans.yaml", _misspell, "did you mean plans?"),
    ("plans.yaml", Path.unlink, "plans.yaml"),
    ("weir.yaml", _cut, "weir.yaml:"),
]


@pytest.mark.parametrize(("name", "damage", "said"), BROKEN, ids=["syntax", "unknown key", "deleted", "half-written"])
def test_a_bad_file_changes_nothing(weir: Gateway, name: str, damage: Callable[[Path], None], said: str) -> None:
    """`weir reload` ends with 1 and says where; told by a signal, the keeper counts and logs it; all serve on.

    A worker that is killed meanwhile is replaced by one that serves by the policy that stands.
    """
    process = settings.load(weir.config)
    damage(weir.config / name)
    done = weir.weir("reload", check=False)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert "reload" in done.stderr
    before = failures(weir)
    assert "the old policy stays" in reload(process)
    wait_for("the counter to rise", lambda: failures(weir) == before + 1)
    assert "policy problem" in weir.stderr() + weir.output.read_text() or "cannot be read" in weir.stderr()
    victim = sorted(weir.processes("worker"))[0]
    os.kill(victim, signal.SIGKILL)
    wait_for("a replacement", lambda: len(set(weir.processes("worker")) - {victim}) == 3 and weir.ready())
    assert asyncio.run(_statuses(weir)) == {200}


def test_a_part_goes_by_the_settings_of_its_start(weir: Gateway) -> None:
    """weir.yaml is edited for the next start: a worker and a keeper that are replaced stay with the others."""
    document = json.loads((weir.config / "weir.yaml").read_text())
    elsewhere = weir.data.parent / "data-of-the-next-start"
    put(weir, {"weir.yaml": json.dumps(document | {"data_dir": str(elsewhere), "workers": 1}).encode()})
    victims = {sorted(weir.processes(verb))[0] for verb in ("worker", "keeper")}
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    wait_for(
        "replacements",
        lambda: (
            len(set(weir.processes("worker")) - victims) == 3
            and len(set(weir.processes("keeper")) - victims) == 1
            and weir.ready()
        ),
    )
    assert asyncio.run(_statuses(weir)) == {200}
    assert not elsewhere.exists()


def test_an_unreadable_credential_changes_nothing(weir: Gateway) -> None:
    """A policy whose upstream key is not there is refused as a whole: workers and their replacements serve on."""
    process = settings.load(weir.config)
    document = json.loads((weir.config / "weir.yaml").read_text())
    document["upstreams"]["mock"]["key"] = f"file:{weir.config}/nowhere.key"
    put(weir, {"weir.yaml": json.dumps(document).encode()})
    before = failures(weir)
    assert "the old policy stays" in reload(process)
    wait_for("the counter to rise", lambda: failures(weir) == before + 1)
    assert f"upstreams.mock.key: file:{weir.config}/nowhere.key cannot be read" in weir.stderr()
    victim = sorted(weir.processes("worker"))[0]
    os.kill(victim, signal.SIGKILL)
    wait_for("a replacement", lambda: len(set(weir.processes("worker")) - {victim}) == 3 and weir.ready())
    assert asyncio.run(_statuses(weir)) == {200}


def test_a_rotated_credential_is_taken_by_a_reload(trio: House, weir: Gateway) -> None:
    """The file of an upstream's key holds another one: after `weir reload` no call goes out by the old one."""

    def sent() -> set[str]:
        marks = [f"rotate-{number}-{len(trio.upstream.events())}" for number in range(12)]
        asyncio.run(_ask_with(weir, marks))
        kept = [event for event in trio.upstream.events() if event["event"] == "request" and event["id"] in marks]
        assert len(kept) == len(marks)
        return {value for event in kept for name, value in event["headers"] if name.lower() == "authorization"}

    path = weir.config / "upstream.key"
    old = path.read_text()
    process = settings.load(weir.config)
    assert sent() == {f"Bearer {old.strip()}"}
    try:
        path.write_text("sk-rotated\n")
        assert reload(process) == ""
        assert sent() == {"Bearer sk-rotated"}
    finally:
        path.write_text(old)
        assert reload(process) == ""
    assert sent() == {f"Bearer {old.strip()}"}


async def _ask_with(weir: Gateway, request_ids: list[str]) -> None:
    async def one(request_id: str) -> None:
        async with Client(weir) as client:
            await client.send(chat({"tokens": 1, "keep": True}), x_request_id=request_id)
            status, headers = await client.head()
            await client.rest(headers)
            assert status == 200

    await asyncio.gather(*(one(request_id) for request_id in request_ids))


async def _statuses(weir: Gateway) -> set[int]:
    answers = await asyncio.gather(*(once(weir, chat({"tokens": 1})) for _ in range(15)))
    return {answer.status for answer in answers}


def failures(weir: Gateway) -> int:
    """What /metrics says of reloads that failed."""
    page = weir.get("/metrics")[1].decode()
    found = re.search(r'^weir_reloads_total{result="failed"} (\S+)$', page, re.MULTILINE)
    return int(float(found[1])) if found else 0
