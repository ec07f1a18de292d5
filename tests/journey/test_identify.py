"""Step 2: a key is what it is on every worker at every request, and nothing else is one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec import structs

from proxy import board, bounds, settings
from proxy._fastpath import Arena, key_digest
from proxy.clock import boot_id
from proxy.errors import Refusal
from proxy.identity.actor import operator
from proxy.identity.keys import Keys, new_secret
from proxy.store.store import KeyRow, Store, StoreUnavailable
from proxy.verbs.keys import new_row
from tests.journey.calling import Answer, Client, chat, keys_verb, once
from tests.journey.conftest import House
from tests.servers import PostgresServer
from tests.world.gateway import Gateway, wait_for
from tests.world.process import UpstreamProcess

PEPPER = bytes(32)


async def many(weir: Gateway, key: str, count: int) -> list[Answer]:
    """So many requests at once, each on a connection of its own: every worker gets some."""
    return list(await asyncio.gather(*(once(weir, chat({"tokens": 1}), key) for _ in range(count))))


@pytest.mark.parametrize("turn", range(4))
def test_revoked_is_refused_by_every_worker_at_once(trio: House, turn: int) -> None:
    """As soon as `weir keys revoke` returns, no worker admits one more request, on new connections and on kept ones."""
    made = keys_verb(trio.weir, "create", "--tenant", "acme")
    other = keys_verb(trio.weir, "create", "--tenant", "acme")

    async def story() -> None:
        async with AsyncExitStack() as stack:
            kept = [await stack.enter_async_context(Client(trio.weir, made["key"])) for _ in range(24)]
            for client in kept:
                assert (await client.call(chat({"tokens": 1}))).status == 200
            if turn:
                await asyncio.to_thread(keys_verb, trio.weir, "revoke", made["key_id"])
            else:  # the command as an operator types it
                await asyncio.to_thread(trio.weir.weir, "keys", "revoke", made["key_id"])
            answers = await asyncio.gather(*(client.call(chat()) for client in kept))
            answers += await many(trio.weir, made["key"], 40)
        assert {(answer.status, answer.code) for answer in answers} == {(401, "invalid_api_key")}
        assert {answer.status for answer in await many(trio.weir, other["key"], 10)} == {200}

    asyncio.run(story())


def test_an_expired_key_is_told_so(trio: House) -> None:
    """A key works until its time and not after it, without anybody announcing anything."""
    process = settings.load(trio.weir.config)

    async def insert(row: KeyRow) -> None:
        store = Store.open(process.database)
        try:
            await store.insert_key(row, operator())
        finally:
            await store.close()

    for seconds in (4, 16, 64):  # a slow machine takes longer to make it and to use it
        secret, row = new_row(process, "acme", "brief", seconds=seconds)
        asyncio.run(insert(row))
        first = asyncio.run(once(trio.weir, chat({"tokens": 1}), secret))
        if first.status == 200:
            break
    assert first.status == 200

    def all_refused() -> bool:
        answers = asyncio.run(many(trio.weir, secret, 12))
        assert {answer.code for answer in answers} <= {"", "expired_api_key"}
        return {(answer.status, answer.headers.get("x-should-retry")) for answer in answers} == {(401, "false")}

    wait_for("the key to expire", all_refused, seconds + 60)


WRONG = ["", "wk_live_x", "sk-proj-something", "wk_live_" + "a" * 43 + "_" + "0" * 6, "wk_live_" + "a" * 5000, "wk\x7f"]


@pytest.mark.parametrize("key", WRONG, ids=lambda key: repr(key[:24]))
def test_what_is_no_key(trio: House, key: str) -> None:
    """Text that is not a key is refused without a look-up, and the answer does not repeat it."""
    answer = asyncio.run(once(trio.weir, chat(), key))
    assert answer.status in (400, 401)
    assert answer.code in ("missing_key", "invalid_api_key", "bad_request")
    assert answer.headers["x-should-retry"] == "false"
    assert not key[8:] or key[8:].encode() not in answer.payload


def test_a_well_formed_key_that_nobody_made(trio: House) -> None:
    """The checksum alone opens nothing; and a key that is made later works at once, on every worker."""
    answers = asyncio.run(many(trio.weir, new_secret("live"), 6))
    assert {(answer.status, answer.code) for answer in answers} == {(401, "invalid_api_key")}
    typo = trio.weir.key[:-1] + ("x" if trio.weir.key[-1] != "x" else "y")
    assert asyncio.run(once(trio.weir, chat(), typo)).status == 401
    process = settings.load(trio.weir.config)
    secret, row = new_row(process, "acme", "later")
    assert {answer.status for answer in asyncio.run(many(trio.weir, secret, 12))} == {401}

    async def insert() -> None:
        store = Store.open(process.database)
        try:
            await store.insert_key(row, operator())
        finally:
            await store.close()

    asyncio.run(insert())
    arena = Arena(str(trio.weir.data / "arena"), boot_id(), -1)
    arena.raise_word(board.KEYS_CREATED)  # as `weir keys create` does
    arena.close()
    assert {answer.status for answer in asyncio.run(many(trio.weir, secret, 12))} == {200}


@pytest.mark.parametrize("header", ["x_api_key", "api_key"])
def test_other_places_for_a_key(trio: House, header: str) -> None:
    """Anthropic's and Azure's header are read as the bearer token is, for a good key and for a bad one."""
    for key, status in ((trio.weir.key, 200), ("nonsense", 401)):
        answer = asyncio.run(once(trio.weir, chat({"tokens": 1}), authorization="", **{header: key}))
        assert answer.status == status


@pytest.mark.parametrize(("tenant", "status"), [("acme", 200), ("rated", 403), ("ACME", 403), ("acme,acme", 403)])
def test_a_tenant_header_may_only_agree(trio: House, tenant: str, status: int) -> None:
    """The key decides whose call it is; the header can agree with it, and is never believed against it."""
    request_id = uuid.uuid4().hex
    answer = asyncio.run(once(trio.weir, chat({"tokens": 1}), x_tenant_id=tenant, x_request_id=request_id))
    assert answer.status == status
    if status == 200:
        assert trio.row(request_id)["tenant"] == "acme"
    else:
        assert answer.code == "tenant_mismatch"
        assert not trio.asked(request_id)


def test_a_narrow_key(trio: House) -> None:
    """A key made for one endpoint and two models may use these, sees only these, and is told so for the rest."""
    made = keys_verb(
        trio.weir, "create", "--tenant", "acme", "--endpoint", "embeddings", "--endpoint", "chat.completions",
        "--model", "m1", "--model", "chat-only",
    )  # fmt: skip
    key = made["key"]

    async def story() -> None:
        async with Client(trio.weir, key) as client:
            assert (await client.call(chat({"tokens": 1}))).status == 200
            other_model = await client.call(chat(model="rated"))
            assert (other_model.status, other_model.code) == (404, "model_not_found")
            embedding = json.dumps({"model": "m1", "input": "a b"}).encode()
            assert (await client.call(embedding, "/v1/embeddings")).status == 200
            completion = json.dumps({"model": "m1", "prompt": "a"}).encode()
            refused = await client.call(completion, "/v1/completions")
            assert (refused.status, refused.code) == (403, "endpoint_not_allowed")
            embedding = json.dumps({"model": "chat-only", "input": "a b"}).encode()
            refused = await client.call(embedding, "/v1/embeddings")
            assert (refused.status, refused.code) == (404, "model_not_at_endpoint")
            listed = json.loads((await client.call(None, "/v1/models")).payload)
            assert {model["id"] for model in listed["data"]} == {"m1", "chat-only"}
            assert (await client.call(None, "/v1/models/rated")).status == 404

    asyncio.run(story())


def renewed(weir: Gateway, generation: int) -> bool:
    """Whether the key table has changed so often, and every worker has asked again about the keys it knows."""
    arena = Arena(str(weir.data / "arena"), boot_id(), -1)
    try:
        rows = board.Board(arena).rows()
        now = arena.word(board.KEYS_GENERATION)
        return now >= generation and all(row.keys_generation == now for row in rows)
    finally:
        arena.close()


class Table:
    """A key table in memory, and a worker's knowledge of it."""

    def __init__(self, path: Path) -> None:
        self.arena = Arena(str(path / "arena"), boot_id(), -1)
        self.rows: dict[bytes, KeyRow] = {}
        self.asked = 0
        self.away = False
        self.meanwhile: Callable[[], None] | None = None  # happens while the database answers
        self.keys = Keys(self.arena, PEPPER, self.look_up_all)

    def make(self) -> bytes:
        """A new key, committed and announced."""
        secret = new_secret("live").encode()
        digest = key_digest(secret, PEPPER)
        self.rows[digest] = KeyRow(str(len(self.rows)), digest, "acme", "", None, (), None, None, "abcd", 1)
        self.arena.raise_word(board.KEYS_CREATED)
        return secret

    def revoke(self, secret: bytes) -> None:
        """Its end, committed and announced."""
        digest = key_digest(secret, PEPPER)
        self.rows[digest] = structs.replace(self.rows[digest], revoked_us=2)
        self.arena.raise_word(board.KEYS_GENERATION)

    async def look_up_all(self, digests: Sequence[bytes]) -> list[KeyRow]:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        rows = [self.rows[digest] for digest in digests if digest in self.rows]
        if self.meanwhile is not None:
            self.meanwhile()
        return rows

    def refused(self, secret: bytes) -> bool:
        """Whether the key is refused from memory."""
        try:
            self.keys.known(secret)
        except Refusal as refusal:
            return refusal.code == "invalid_api_key"
        return False


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path)
    yield made
    made.arena.close()


def test_a_new_key_sends_no_other_back_to_the_database(table: Table) -> None:
    """What is known stays known when a key is made; what was unknown is asked for again."""
    first, stranger = table.make(), new_secret("live").encode()
    known = asyncio.run(table.keys.look_up(first))
    with pytest.raises(Refusal, match="invalid_api_key"):
        asyncio.run(table.keys.look_up(stranger))
    assert table.refused(stranger)
    second = table.make()
    assert table.keys.known(first) is known
    assert table.keys.known(stranger) is None, "it might be the one that was just made"
    assert asyncio.run(table.keys.look_up(second)).principal.tenant == "acme"


def test_known_keys_are_renewed_after_a_revocation(table: Table) -> None:
    """One query renews those that still hold, with what was worked out for them; the revoked one is refused at once."""
    good, bad = table.make(), table.make()
    known = asyncio.run(table.keys.look_up(good))
    asyncio.run(table.keys.look_up(bad))
    table.revoke(bad)
    assert table.keys.known(good) is None, "nobody has asked yet whether it was this one"
    assert table.keys.renewed == 0
    table.asked = 0
    asyncio.run(table.keys.renew())
    asyncio.run(table.keys.renew())
    assert (table.asked, table.keys.renewed) == (1, 1)
    assert table.keys.known(good) is known
    assert table.refused(bad)


def test_a_key_that_cannot_be_renewed_stays_stale(table: Table) -> None:
    """With the database away after a revocation nothing is believed: a revoked key must not come back."""
    good, bad = table.make(), table.make()
    for secret in (good, bad):
        asyncio.run(table.keys.look_up(secret))
    table.revoke(bad)
    table.away = True
    asyncio.run(table.keys.renew())
    assert table.keys.known(good) is None
    assert table.keys.known(bad) is None
    with pytest.raises(Refusal, match="store_unavailable"):
        asyncio.run(table.keys.look_up(good))
    table.away = False
    asyncio.run(table.keys.renew())
    assert table.keys.known(good) is not None
    assert table.refused(bad)


def test_a_revocation_while_keys_are_renewed_is_not_lost(table: Table) -> None:
    """The rows were read before the change: what they say is stale the moment it is known, and is asked again."""
    first, second = table.make(), table.make()
    for secret in (first, second):
        asyncio.run(table.keys.look_up(secret))
    table.arena.raise_word(board.KEYS_GENERATION)

    def once_more() -> None:
        table.meanwhile = None
        table.revoke(second)

    table.meanwhile = once_more
    asyncio.run(table.keys.renew())
    assert table.keys.known(second) is None
    assert table.keys.known(first) is None
    asyncio.run(table.keys.renew())
    assert table.keys.known(first) is not None
    assert table.refused(second)


def test_only_the_latest_of_many_keys_are_renewed(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change costs a bounded number of questions; the other keys ask for themselves when they are used."""
    monkeypatch.setattr(bounds, "KEYS_RENEWED_MAX", 5)
    monkeypatch.setattr(bounds, "KEYS_RENEWED_AT_ONCE", 2)
    secrets = [table.make() for _ in range(9)]
    for secret in secrets:
        asyncio.run(table.keys.look_up(secret))
    table.arena.raise_word(board.KEYS_GENERATION)
    table.asked = 0
    asyncio.run(table.keys.renew())
    assert table.asked == 3
    assert [table.keys.known(secret) is not None for secret in secrets] == [False] * 4 + [True] * 5


def test_the_database_goes_away(tmp_path: Path, own_postgres: PostgresServer) -> None:
    """With PostgreSQL killed a known key goes on; another is a 503 to retry; all is metered at the end."""
    database = own_postgres.url(own_postgres.create_database())
    with UpstreamProcess(tmp_path / "ledger.jsonl") as upstream:
        with Gateway(tmp_path, upstream.url, database=database) as weir:
            ended = keys_verb(weir, "create", "--tenant", "acme")
            assert asyncio.run(once(weir, chat({"tokens": 1}), x_request_id="before")).status == 200
            keys_verb(weir, "revoke", ended["key_id"])
            wait_for("the keeper to see it, and the worker to renew the others", lambda: renewed(weir, 3))
            # A key that is made ends no other: not in the instant before the database goes away either.
            unused = keys_verb(weir, "create", "--tenant", "acme")["key"]
            own_postgres.kill()
            answers = asyncio.run(many(weir, weir.key, 10))
            assert {answer.status for answer in answers} == {200}
            refused = asyncio.run(once(weir, chat(), unused))
            assert (refused.status, refused.code) == (503, "store_unavailable")
            assert (refused.headers["x-should-retry"], refused.headers["x-weir-error"]) == ("true", "gateway")
            wait_for("/readyz names it", lambda: b"database" in weir.get("/readyz", weir.port)[1])
            own_postgres.start()
            wait_for("the other key to work", lambda: asyncio.run(once(weir, chat(), unused)).status == 200)
            wait_for("every row", lambda: len(weir.rows()) == 12)
            weir.assert_at_rest()


def test_what_starts_while_the_database_is_away(tmp_path: Path, own_postgres: PostgresServer) -> None:
    """A worker that dies meanwhile is replaced, and a host starts: both refuse until it is there."""
    with UpstreamProcess(tmp_path / "ledger.jsonl") as upstream, contextlib.ExitStack() as stack:
        weir = Gateway(tmp_path / "one", upstream.url, database=own_postgres.url(own_postgres.create_database()))
        empty = Gateway(tmp_path / "two", upstream.url, database=own_postgres.url(own_postgres.create_database()))
        stack.callback(empty.kill_all)
        stack.enter_context(weir)

        def answer() -> tuple[int, str]:
            try:
                said = asyncio.run(once(weir, chat({"tokens": 1})))
            except (OSError, EOFError):
                return 0, ""  # a connection to the worker that was killed
            return said.status, said.code

        assert answer()[0] == 200
        own_postgres.kill()
        (worker,) = weir.processes("worker")
        os.kill(worker, signal.SIGKILL)
        wait_for("another worker to refuse", lambda: answer() == (503, "store_unavailable"))
        assert worker not in weir.processes("worker")
        weir.kill_all()

        for each in (weir, empty):
            each.start_part("proxy")
            wait_for("it to say so", lambda each=each: b"has not been reached yet" in each.get("/readyz")[1])
        assert weir.get("/readyz")[0] == 503
        assert answer() == (503, "store_unavailable")
        assert "/readyz is 503" in weir.stderr()
        own_postgres.start()
        wait_for("it to be ready", weir.ready)
        wait_for("the key to work", lambda: answer()[0] == 200)
        wait_for("the other to say what to run", lambda: "no Weir schema" in empty.stderr())
