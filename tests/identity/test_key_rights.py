"""What a key may do: its own limits, plan, networks and time, which only narrow; and what asking for keys costs."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from proxy import board, bounds, settings
from proxy._fastpath import Arena, key_digest
from proxy.call import Principal
from proxy.clock import boot_id, wall_us
from proxy.errors import Refusal
from proxy.identity import lookups
from proxy.identity.actor import operator
from proxy.identity.addresses import address_of, block_of, blocks_of, client_of, site_of, within
from proxy.identity.keys import Keys, new_secret, principal_of
from proxy.identity.lookups import LookUps, Words
from proxy.keeping.keys import KeyWatch
from proxy.policy.compile import compile_policy
from proxy.policy.effective import effective, visible_models
from proxy.store.keys import KeyRow
from proxy.store.store import Store
from proxy.verbs.keys import new_row
from tests.identity.conftest import LONGEST
from tests.journey.calling import Answer, Client, chat, keys_verb, once
from tests.journey.conftest import House
from tests.world.gateway import Gateway

DAY_US = 86_400_000_000


def ask(world: House, key: str, body: bytes | None = None, **headers: str) -> Answer:
    """One short call with this key."""
    return asyncio.run(once(world.weir, body or chat({"tokens": 1}), key, **headers))


def made(world: House, *options: str, tenant: str = "acme") -> str:
    """A new key's secret."""
    return str(keys_verb(world.weir, "create", "--tenant", tenant, *options)["key"])


# === limits and plan ===


def test_a_keys_own_limit(world: House) -> None:
    """The key's own limit refuses its third call of a minute, names the key as the level, and touches no other key."""
    tight, other = made(world, "--requests-per-minute", "2"), made(world)

    async def story() -> list[Answer]:
        async with Client(world.weir, tight) as client:
            return [await client.call(chat({"tokens": 1})) for _ in range(3)]

    answers = asyncio.run(story())
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert b"2 requests per minute for this key" in answers[2].payload
    assert answers[2].headers["x-ratelimit-limit-requests"] == "2"
    assert ask(world, other).status == 200


def test_a_keys_own_tokens_and_concurrency(world: House) -> None:
    """The other two kinds of a key's own limits hold as well."""
    tokens = ask(world, made(world, "--tokens-per-minute", "10"), chat(prompt="word " * 40))
    assert (tokens.status, tokens.code) == (429, "request_too_large")

    key = made(world, "--concurrency", "1")

    async def story() -> Answer:
        async with Client(world.weir, key) as first, Client(world.weir, key) as second:
            await first.send(chat({"tokens": 40, "delay_ms": 50}, stream=True))
            await first.head()
            return await second.call(chat({"tokens": 1}))

    refused = asyncio.run(story())
    assert (refused.status, refused.code) == (429, "concurrency_exceeded")


def test_a_keys_limit_above_its_tenants_widens_nothing(world: House) -> None:
    """A key may say a hundred a minute: with a tenant that gives each key two, the third is refused."""
    key = made(world, "--requests-per-minute", "100", tenant="narrow")
    assert [ask(world, key).status for _ in range(3)] == [200, 200, 429]


def test_a_keys_own_plan(world: House) -> None:
    """A plan's endpoints and its limits hold for the one key that is on it, besides its tenant's own plan."""
    refused = ask(world, made(world, "--plan", "embeddings-only"))
    assert (refused.status, refused.code) == (403, "endpoint_not_allowed")
    slow = made(world, "--plan", "slow")
    assert [ask(world, slow).status for _ in range(3)] == [200, 200, 429]
    assert ask(world, made(world)).status == 200


def test_the_least_of_all_levels_is_in_force(tmp_path: Path) -> None:
    """Over every choice of who sets which limit, the key's cell has the least of those set, and says who decided."""
    amounts = {"plan": 40, "tenant": 30, "own plan": 20, "key": 10}
    for chosen in range(16):
        on = {name for number, name in enumerate(amounts) if chosen >> number & 1}
        weir = Gateway(tmp_path / str(chosen), "http://127.0.0.1:9/v1")
        rules = {name: {"requests_per_minute": amounts[name]} if name in on else {} for name in amounts}
        plans = {"all": {"key_limits": rules["plan"]}, "mine": {"limits": rules["own plan"]}}
        weir.write("plans.yaml", {"plans": plans})
        weir.write("tenants/acme.yaml", {"name": "acme", "plan": "all", "key_limits": rules["tenant"]})
        policy = compile_policy(weir.config)
        own = (("requests_per_minute", amounts["key"]),) if "key" in on else ()
        who = Principal("acme", "key_1", plan="mine", own_limits=own)
        limits = effective(policy, who, "m1", "embeddings").limits
        assert [limit.limit for limit in limits] == sorted(amounts[name] for name in on)[:1]
        if "key" in on:
            assert (limits[0].source, limits[0].scope, limits[0].level) == ("the key", "key/key_1", "key")


def test_a_keys_plan_narrows_models_and_counts_its_own(tmp_path: Path) -> None:
    """Models outside the key's plan do not exist for it; its plan's limit on a model has a cell of the key alone."""
    weir = Gateway(tmp_path, "http://127.0.0.1:9/v1")
    mine = {"models": ["m1"], "model_limits": {"m1": {"concurrency": 2}}}
    weir.write("plans.yaml", {"plans": {"all": {}, "mine": mine}})
    policy = compile_policy(weir.config)
    who = Principal("acme", "key_1", plan="mine")
    assert effective(policy, who, "m2", "embeddings").refusal == "model_not_found"
    assert "the key's own plan mine" in effective(policy, who, "m2", "embeddings").reason
    assert visible_models(policy, who) == ("m1",)
    assert [limit.scope for limit in effective(policy, who, "m1", "embeddings").limits] == ["key/key_1/m1"]


def test_a_plan_that_is_gone_opens_nothing(tmp_path: Path) -> None:
    """A key whose plan was taken out of the policy is refused: without what narrows it, it might do anything."""
    policy = compile_policy(Gateway(tmp_path, "http://127.0.0.1:9/v1").config)
    who = Principal("acme", "key_1", plan="gone")
    verdict = effective(policy, who, "m1", "embeddings")
    assert (verdict.refusal, verdict.reason) == ("invalid_api_key", "the key's own plan gone is not in the policy")
    assert visible_models(policy, who) == ()


# === everything at its widest ===


@pytest.mark.parametrize("letter", ["x", "é", "𝄞"])
def test_the_widest_call_is_opened(world: House, letter: str) -> None:
    """A call with every field at its bound, in letters of one to four bytes, is served and has its row."""
    text = letter * (bounds.TAGS_BYTES_MAX // len(letter.encode()))
    half = len(text) // 2
    key = made(world, "--tag", f"{text[:half]}={text[half:]}", tenant=LONGEST)
    request_id = uuid.uuid4().hex + "r" * (bounds.REQUEST_ID_BYTES_MAX - 32)
    body = chat({"tokens": 1}, "m" * bounds.MODEL_BYTES_MAX, user=letter * 200)
    name = "x_" + "h" * (bounds.TAG_HEADER_BYTES_MAX - 2)
    value = (letter * 200).encode().decode("latin-1")
    raw = asyncio.run(at(world, key, body, {name: value, "x_request_id": request_id}))
    assert raw.status == 200
    row = world.row(request_id[: bounds.REQUEST_ID_BYTES_KEPT])
    assert (row["tenant"], row["model"]) == (LONGEST, "m" * bounds.MODEL_BYTES_MAX)
    assert len(row["user"].encode()) > bounds.USER_BYTES_MAX - 4


async def at(world: House, key: str, body: bytes, headers: dict[str, str]) -> Answer:
    """A call whose headers may have any bytes."""
    async with Client(world.weir, key) as client:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: weir\r\nauthorization: Bearer {key}\r\n{lines}"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        client.writer.write(head.encode("latin-1") + body)
        return await client.answer()


def test_tags_of_a_row_that_has_too_many_are_left_out(tmp_path: Path) -> None:
    """Whoever wrote the row: what does not fit a slot is not kept, and the call can be opened."""
    row = KeyRow("k", b"", "acme", "", None, (("a", "b" * 90), ("c", "d" * 9), ("e", "f")), None, None, "", 1)
    assert principal_of(row).tags == (("a", "b" * 90),)
    many = msgspec.structs.replace(row, tags=tuple((str(n), "") for n in range(20)))
    assert len(principal_of(many).tags) == bounds.TAGS_MAX


# === networks ===

INSIDE = [
    ("10.1.2.3", 200),
    ("10.200.0.1", 200),
    ("::ffff:10.1.2.3", 200),
    ("2001:db8:1::7", 200),
    ("10.1.2.3:4711", 200),
    ("[2001:db8:1::7]:443", 200),
    ("11.1.2.3", 403),
    ("2001:db8:2::7", 403),
    ("::ffff:11.0.0.1", 403),
]


@pytest.mark.parametrize(("client", "status"), INSIDE)
def test_a_key_of_some_networks(world: House, client: str, status: int) -> None:
    """A key with networks is served from there and refused from elsewhere, however the address is written."""
    key = keys_of(world)
    answer = ask(world, key, x_forwarded_for=client)
    assert (answer.status, answer.code) == (status, "" if status == 200 else "address_not_allowed")


_NETWORK_KEYS: dict[int, str] = {}


def keys_of(world: House) -> str:
    """One key of two networks for all of them."""
    if id(world) not in _NETWORK_KEYS:
        networks = ("--network", "10.0.0.0/8", "--network", "2001:db8:1::/48")
        _NETWORK_KEYS[id(world)] = made(world, *networks)
    return _NETWORK_KEYS[id(world)]


def test_the_proxy_itself_and_forged_chains(world: House) -> None:
    """Without a chain the proxy is the client; what a client writes left of its own address is not believed."""
    key = keys_of(world)
    assert ask(world, key).status == 403
    assert ask(world, key, x_forwarded_for="10.1.2.3, 11.1.2.3").status == 403
    assert ask(world, key, x_forwarded_for="11.1.2.3, 10.1.2.3, 127.0.0.9").status == 200
    for broken in ("10.1.2.3,", "10.1.2.3, unknown", "010.1.2.3", "fe80::1%eth0", "10.1.2.3/8"):
        answer = ask(world, key, x_forwarded_for=broken)
        assert (answer.status, answer.code) == (400, "bad_header"), broken
        assert ask(world, made(world), x_forwarded_for=broken).status == 400


def test_a_chain_counts_only_from_a_trusted_proxy() -> None:
    """From anybody else the header is a client's own word: the peer's address stands, whatever it says."""
    headers = ((b"X-Forwarded-For", b"10.0.0.1"),)
    peer = address_of("192.0.2.9")
    assert client_of("192.0.2.9", headers, ()) == peer
    assert client_of("192.0.2.9", headers, blocks_of(("192.0.2.0/29",))) == peer
    assert client_of("192.0.2.9", ((b"X-Forwarded-For", b"nonsense"),), ()) == peer
    trusted = blocks_of(("192.0.2.0/24",))
    assert client_of("192.0.2.9", headers, trusted) == address_of("10.0.0.1")
    assert client_of("192.0.2.9", ((b"X_Forwarded_For", b"10.0.0.1"), (b"Forwarded", b"for=10.0.0.1")), trusted) == peer
    assert client_of("::ffff:192.0.2.9", headers, trusted) == address_of("10.0.0.1")
    assert client_of("", headers, trusted) is None


CHAINS = [
    ((b"1.1.1.1, 2.2.2.2",), "2.2.2.2"),
    ((b"1.1.1.1", b"2.2.2.2, 192.0.2.1"), "2.2.2.2"),  # two lines are one list
    ((b"192.0.2.1, 192.0.2.2",), "192.0.2.1"),  # all trusted: whoever began
    ((b"\t1.1.1.1 ",), "1.1.1.1"),
    ((b"[::ffff:1.1.1.1]:80",), "1.1.1.1"),
    ((b"1.1.1.1,,2.2.2.2",), None),
    ((b"",), None),
    ((b"1.1.1.1:port",), None),
    ((b"1.1.1.1:123456",), None),
    ((b"[1.1.1.1]",), None),
    ((b"[::1",), None),
    ((b"[::1]x",), None),
    ((b"::1%1",), None),
    ((b"1.1.1",), None),
    ((b",".join([b"1.1.1.1"] * bounds.FORWARDED_ADDRESSES_MAX),), "1.1.1.1"),
    ((b",".join([b"1.1.1.1"] * (bounds.FORWARDED_ADDRESSES_MAX + 1)),), None),
    ((b"1.1.1.1,\xff",), None),
]


@pytest.mark.parametrize(("values", "client"), CHAINS)
def test_chains(values: Sequence[bytes], client: str | None) -> None:
    """The rightmost address that is not a trusted proxy's; a chain with anything else in it is refused whole."""
    headers = tuple((b"x-forwarded-for", value) for value in values)
    trusted = blocks_of(("192.0.2.0/24",))
    if client is None:
        with pytest.raises(Refusal, match="bad_header"):
            client_of("192.0.2.9", headers, trusted)
    else:
        assert client_of("192.0.2.9", headers, trusted) == address_of(client)


def test_blocks_and_sites() -> None:
    """Blocks of mapped addresses are IPv4; version 4 is never inside a block of version 6; a site is a /64."""
    assert block_of("::ffff:10.0.0.0/104") == block_of("10.0.0.0/8")
    assert within(address_of("::ffff:10.9.9.9"), blocks_of(("10.0.0.0/8",)))
    assert not within(address_of("0.0.0.1"), blocks_of(("::/0",)))
    assert not within(None, blocks_of(("0.0.0.0/0", "::/0")))
    assert address_of("fe80::1%eth0") == address_of("fe80::1")
    assert site_of(address_of("2001:db8::1")) == site_of(address_of("2001:db8::ffff:ffff"))
    assert site_of(address_of("2001:db8::1")) != site_of(address_of("2001:db8:0:1::1"))
    assert site_of(address_of("10.0.0.1")) != site_of(address_of("10.0.0.2"))
    with pytest.raises(ValueError, match="host bits"):
        block_of("10.0.0.1/8")


# === time ===


def test_a_key_that_ends_soon_says_so(world: House) -> None:
    """Within its last week every answer, refusals too, says when it ends; before that none does."""
    soon, later = made(world, "--expires-in", "6d"), made(world, "--expires-in", "8d")
    ends_us = next(r for r in rows(world) if r.last4 == soon[-4:] and r.expires_us is not None).expires_us
    assert ends_us is not None
    said = ask(world, soon).headers["x-weir-key-expires"]
    assert abs(timestamp_us(said) - ends_us) < 1000
    assert ask(world, soon, chat(model="m" * 97)).headers["x-weir-key-expires"] == said
    assert "x-weir-key-expires" not in ask(world, later).headers
    assert "x-weir-key-expires" not in ask(world, made(world)).headers


def timestamp_us(text: str) -> int:
    """RFC 3339 in microseconds since 1970."""
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1_000_000)


def rows(world: House) -> list[KeyRow]:
    """Every key of the database."""

    async def read() -> list[KeyRow]:
        store = Store.open(settings.load(world.weir.config).database, readonly=True)
        try:
            return await store.list_keys()
        finally:
            await store.close()

    return asyncio.run(read())


def test_rotation_overlaps(world: House) -> None:
    """Both keys work during the overlap, the old one saying when it ends; without an overlap it has ended."""
    old = keys_verb(world.weir, "create", "--tenant", "acme", "--requests-per-minute", "50")
    new = keys_verb(world.weir, "rotate", old["key_id"], "--overlap", "1h")
    first, second = ask(world, old["key"]), ask(world, new["key"])
    assert (first.status, second.status) == (200, 200)
    assert 0 < timestamp_us(first.headers["x-weir-key-expires"]) - wall_us() <= 3_600_000_000
    assert "x-weir-key-expires" not in second.headers
    assert second.headers["x-ratelimit-limit-requests"] == "50"

    async def end() -> None:
        """The overlap's end comes now, for a worker that looks the key up anew."""
        store = Store.open(settings.load(world.weir.config).database)
        try:

            async def work(connection: Any) -> None:
                change = text("UPDATE keys SET retires_us = :now WHERE key_id = :id")
                await connection.execute(change, {"now": wall_us() - 1, "id": old["key_id"]})

            await store.writing(work)
        finally:
            await store.close()
        arena = Arena(str(world.weir.data / "arena"), boot_id(), -1)
        arena.raise_word(board.KEYS_GENERATION)
        arena.close()

    asyncio.run(end())
    ended = ask(world, old["key"])
    assert (ended.status, ended.code) == (401, "expired_api_key")
    assert ask(world, new["key"]).status == 200


def test_keys_that_end_soon_are_counted(tmp_path: Path) -> None:
    """The keeper's metric counts those that expire within the week, unless they are revoked, rotated or over."""
    weir = Gateway(tmp_path, "http://127.0.0.1:9/v1")
    process = settings.load(weir.config)
    weir.migrate()
    now_us = wall_us()
    cases = {
        "soon": {"expires_us": now_us + DAY_US},
        "over": {"expires_us": now_us - 1},
        "later": {"expires_us": now_us + 8 * DAY_US},
        "never": {},
        "revoked": {"expires_us": now_us + DAY_US, "revoked_us": now_us},
        "rotated": {"expires_us": now_us + DAY_US, "successor": "key_2", "retires_us": now_us + DAY_US},
    }

    async def count() -> tuple[int, int | None]:
        store = Store.open(process.database)
        watch: Any = KeyWatch(store, None, Any, Any)  # type: ignore[arg-type]
        try:
            for name, changes in cases.items():
                _, row = new_row(process, "acme", name)
                await store.insert_key(msgspec.structs.replace(row, **changes), operator())
            await watch.count_ending(store)
            return await store.keys_ending(now_us, now_us + 30 * DAY_US), watch.ending
        finally:
            await store.close()

    assert asyncio.run(count()) == (2, 1)


# === asking the database ===


class Asked:
    """A key table that answers when it is let, and the words of a board."""

    def __init__(self) -> None:
        self.queries: list[list[bytes]] = []
        self.free = asyncio.Event()
        self.words = Words(0, 0)
        self.rows: dict[bytes, KeyRow] = {}
        self.open = 0
        self.open_max = 0

    async def look_up_all(self, digests: Sequence[bytes]) -> list[KeyRow]:
        self.queries.append(list(digests))
        self.open += 1
        self.open_max = max(self.open, self.open_max)
        try:
            await self.free.wait()
        finally:
            self.open -= 1
        return [self.rows[digest] for digest in digests if digest in self.rows]


def row_of(digest: bytes) -> KeyRow:
    """A key with nothing special."""
    return KeyRow(digest.hex(), digest, "acme", "", None, (), None, None, "", 1)


def test_one_look_up_for_all_who_ask_for_one_key() -> None:
    """A hundred requests with one new key are one question; one that leaves takes nothing from the others."""

    async def story() -> None:
        table = Asked()
        look_ups = LookUps(table.look_up_all, lambda: table.words, 10)
        waiting = [asyncio.create_task(look_ups.find(b"a")) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting[0].cancel()
        table.rows[b"a"] = row_of(b"a")
        table.free.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [lookups.Found(row_of(b"a"), table.words)] * 99
        assert table.queries == [[b"a"]]

    asyncio.run(story())


def test_a_flood_of_strangers_is_one_connection_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys are asked for, one query is open; beyond the bound they are refused at once, with a time."""
    monkeypatch.setattr(bounds, "KEYS_RENEWED_AT_ONCE", 20)

    async def story() -> None:
        table = Asked()
        look_ups = LookUps(table.look_up_all, lambda: table.words, 100)
        first = asyncio.create_task(look_ups.find(b"first"))
        while not table.queries:
            await asyncio.sleep(0)
        flood = [asyncio.create_task(look_ups.find(b"%d" % number)) for number in range(1000)]
        done, pending = await asyncio.wait(flood, timeout=0.1)
        assert (len(done), len(pending)) == (900, 100)
        for task in done:
            refused = task.exception()
            assert isinstance(refused, Refusal)
            assert (refused.code, refused.retry_after_ms) == ("store_unavailable", 1000)
        table.free.set()
        assert {(await task).row for task in [first, *pending]} == {None}
        assert table.open_max == 1
        assert [len(query) for query in table.queries] == [1, 20, 20, 20, 20, 20]

    asyncio.run(story())


def test_a_change_while_the_table_is_asked_is_asked_about_again() -> None:
    """Who comes after a change does not take the answer of a question from before it: a revoked key stays revoked."""

    async def story() -> None:
        table = Asked()
        look_ups = LookUps(table.look_up_all, lambda: table.words, 10)
        before = asyncio.create_task(look_ups.find(b"a"))
        while not table.queries:
            await asyncio.sleep(0)
        table.words = Words(1, 0)
        after = asyncio.create_task(look_ups.find(b"a"))
        await asyncio.sleep(0)
        table.free.set()
        assert ((await before).words, (await after).words) == (Words(0, 0), Words(1, 0))
        assert table.queries == [[b"a"], [b"a"]]

    asyncio.run(story())


def test_a_table_that_is_away_or_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that fails, and one without an answer in time, are a 503; the next one is asked anew."""

    async def story() -> None:
        table = Asked()
        failing = True

        async def look_up_all(digests: Sequence[bytes]) -> list[KeyRow]:
            if failing:
                raise OSError("away")
            return await table.look_up_all(digests)

        look_ups = LookUps(look_up_all, lambda: table.words, 10)
        with pytest.raises(Refusal, match="store_unavailable"):
            await look_ups.find(b"a")
        failing = False
        with monkeypatch.context() as patch:
            patch.setattr(bounds, "KEYS_WAIT_SECONDS_MAX", 0.05)
            with pytest.raises(Refusal, match="store_unavailable"):
                await look_ups.find(b"a")
        table.free.set()
        assert (await look_ups.find(b"b")).row is None

    asyncio.run(story())


def test_strangers_do_not_delay_known_keys(tmp_path: Path) -> None:
    """While the table is busy with unknown keys, one that was known before a change is asked about beside them."""

    async def story() -> None:
        table = Asked()
        arena = Arena(str(tmp_path / "arena"), boot_id(), -1)
        held = asyncio.Event()
        good = new_secret("live").encode()

        async def look_up_all(digests: Sequence[bytes]) -> list[KeyRow]:
            if held.is_set() and known_digest not in digests:
                await table.free.wait()
                return []
            return [row_of(digest) for digest in digests]

        keys = Keys(arena, bytes(32), look_up_all)
        known_digest = key_digest(good, bytes(32))
        await keys.look_up(good)
        held.set()
        flood = [asyncio.create_task(keys.look_up(new_secret("live").encode())) for _ in range(50)]
        await asyncio.sleep(0)
        arena.raise_word(board.KEYS_GENERATION)
        assert keys.known(good) is None
        assert (await keys.look_up(good)).principal.key_id == known_digest.hex()
        assert not any(task.done() for task in flood)
        table.free.set()
        refused = await asyncio.gather(*flood, return_exceptions=True)
        assert {str(each.args[0]) for each in refused if isinstance(each, Refusal)} == {"invalid_api_key"}
        arena.close()

    asyncio.run(story())


def test_what_a_worker_knows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known and unknown keys are kept up to their bounds, the latest of them; strangers push no known key out."""
    monkeypatch.setattr(bounds, "KEYS_CACHED_MAX", 5)
    monkeypatch.setattr(bounds, "KEYS_UNKNOWN_CACHED_MAX", 3)

    async def story() -> None:
        arena = Arena(str(tmp_path / "arena"), boot_id(), -1)
        exist = True

        async def look_up_all(digests: Sequence[bytes]) -> list[KeyRow]:
            return [row_of(digest) for digest in digests] if exist else []

        keys = Keys(arena, bytes(32), look_up_all)
        secrets = [new_secret("live").encode() for _ in range(9)]
        for secret in secrets:
            await keys.look_up(secret)
        assert repr(keys) == "[Keys: 5 known, 0 unknown]"
        exist = False
        for _ in range(20):
            with pytest.raises(Refusal, match="invalid_api_key"):
                await keys.look_up(new_secret("live").encode())
        assert repr(keys) == "[Keys: 5 known, 3 unknown]"
        assert [keys.known(secret) is not None for secret in secrets] == [False] * 4 + [True] * 5
        arena.close()

    asyncio.run(story())


def test_endpoints_and_models_of_a_key(world: House) -> None:
    """A key's own endpoints and models narrow what its tenant may; the list of models is narrowed with them."""
    key = made(world, "--endpoint", "chat.completions", "--model", "priced")
    assert ask(world, key, chat({"tokens": 1}, "priced")).status == 200
    assert ask(world, key, chat({"tokens": 1}, "m1")).code == "model_not_found"

    async def story() -> tuple[Answer, Answer]:
        async with Client(world.weir, key) as client:
            listed = await client.call(None, "/v1/models")
            return listed, await client.call(json.dumps({"model": "priced", "input": "x"}).encode(), "/v1/embeddings")

    listed, refused = asyncio.run(story())
    assert [each["id"] for each in json.loads(listed.payload)["data"]] == ["priced"]
    assert (refused.status, refused.code) == (403, "endpoint_not_allowed")
