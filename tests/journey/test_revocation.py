"""A credential ends while calls run by it: each is ended well, metered for what it had, and holds nothing any more.

One worker inside the test, so that every race can be held still. That it is soon enough on every host is proved in
tests/processes/test_revocation.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from msgspec import structs

from proxy import board, bounds, clock, record
from proxy.call import UsageEvent
from proxy.errors import Refusal
from proxy.identity.issuers import IssuerMetrics, Issuers
from proxy.identity.keys import Known
from proxy.identity.tokens import Identity, Tokens
from proxy.journal import read_records
from proxy.policy.snapshot import Policy
from proxy.store.keys import KeyRow
from proxy.store.store import StoreUnavailable
from proxy.telemetry.metrics import Counters
from tests.identity.forge import ISSUER, jwk, key_set, token
from tests.journey.calling import Answer, Client, chat, request
from tests.journey.inside import Inside, inside
from tests.world import ledger

LONG = {"endless": True, "delay_ms": 5}  # a stream that only its cut ends
_WAIT_SECONDS = 120


class Table:
    """The table of keys with one key in it, and what can go wrong with asking it."""

    def __init__(self) -> None:
        self.ended = False
        self.away = False
        self.asked = 0
        self.before: Callable[[], Awaitable[None]] | None = None  # happens after the rows were read

    async def __call__(self, digests: Sequence[bytes], row: KeyRow) -> Sequence[KeyRow]:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        rows = [structs.replace(row, revoked_us=1 if self.ended else None)] if row.digest in digests else []
        if self.before is not None:
            before, self.before = self.before, None
            await before()
        return rows


class Stage(NamedTuple):
    """One worker, its table of keys, and what the tests do with both."""

    weir: Inside
    table: Table

    def revoke(self) -> None:
        """Committed and announced."""
        self.table.ended = True
        self.weir.epoch.arena.raise_word(board.KEYS_GENERATION)

    async def look(self) -> None:
        """What the worker does every KEYS_RENEW_SECONDS."""
        await self.weir.house.running.look(self.weir.house.policy)

    def held(self) -> tuple[int, int]:
        """(holds in shared memory, open slots)."""
        return self.weir.epoch.arena.held_total(), self.weir.epoch.writer.open_slots

    async def events(self) -> list[UsageEvent]:
        """Every row so far."""
        await until(lambda: self.held() == (0, 0))
        calls = self.weir.epoch.writer.calls
        if calls:
            await self.weir.epoch.wait_synced(calls)
        found = [record.decode(payload) for payload in read_records(self.weir.epoch.path, 1, 100, 1 << 20).records]
        return [event for event in found if isinstance(event, UsageEvent)]

    async def settled(self, **clients: ledger.Seen) -> list[UsageEvent]:
        """The rows, once everything is at rest and the books of upstream, rows and clients agree."""
        events = await self.events()
        upstream = self.weir.upstream.ledger
        await until(lambda: sum(event["event"] == "end" for event in upstream.events) == upstream.n)
        rows = [{**structs.asdict(event), "epoch": self.weir.epoch.epoch.hex()} for event in events]
        assert ledger.check(upstream.events, rows, clients or None) == []
        return events


async def until(happened: Callable[[], bool]) -> None:
    """Waits for a condition; AssertionError when it does not come about."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while not happened():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def stage(directory: Path, **more: Any) -> AsyncIterator[Stage]:
    """Serves until the block ends; then nothing may be held."""
    table = Table()
    limits = {"limits": {"concurrency": 5}}
    async with inside(directory, table=table, tenant={**limits, **more.pop("tenant", {})}, **more) as weir:
        made = Stage(weir, table)
        yield made
        await until(lambda: made.held() == (0, 0))


def client_of(made: Stage) -> Client:
    """A client of the one worker."""
    return Client(made.weir)  # type: ignore[arg-type]


def ended(client: Client) -> bool:
    """Whether its connection is over; a client that merely waited in vain says no."""
    return client.reader.at_eof() or client.reader.exception() is not None


def seen(payload: bytes, ended: Any = "cut") -> ledger.Seen:
    """What a client had of the upstream: all but the frame by which Weir ended it."""
    frames = payload.split(b"\n\n")[:-1]
    assert b'"credential_revoked"' in frames[-1]
    return ledger.Seen(ended, 200, len(frames) - 1, sum(len(frame) + 2 for frame in frames[:-1]))


def test_a_stream_is_cut_and_its_client_told(tmp_path: Path) -> None:
    """A running stream ends with an error frame and a whole body; the row says what was relayed; the next is a 401."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client:
            await client.send(chat(LONG, stream=True), x_request_id="one")
            _, headers = await client.head()
            parts = client.parts(headers)
            payload = await anext(parts) + await anext(parts)
            made.revoke()
            await made.look()
            payload += b"".join([part async for part in parts])
            error = json.loads(payload.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]
            assert (error["code"], error["type"]) == ("credential_revoked", "invalid_request_error")
            refused = await client.call(chat())
            assert (refused.status, refused.code) == (401, "invalid_api_key"), "on the same connection"
            (row,) = await made.settled(one=seen(payload))
            assert (row.termination, row.status) == ("revoked", 200)
            assert row.relayed_frames == seen(payload).frames
            assert row.completion_tokens > 0

    asyncio.run(story())


def test_the_official_sdk_raises_it(tmp_path: Path) -> None:
    """The SDK that iterates over a stream gets the chunks so far, and then an APIError with our sentence."""

    async def story() -> None:
        async with stage(tmp_path) as made:
            url = f"http://127.0.0.1:{made.weir.port}/v1"
            async with openai.AsyncOpenAI(api_key=made.weir.key, base_url=url, max_retries=0) as sdk:
                body: Any = json.loads(chat(LONG))
                chunks = await sdk.chat.completions.create(**body, stream=True)
                got = [await anext(chunks)]
                made.revoke()
                await made.look()

                async def rest() -> None:
                    async for chunk in chunks:
                        got.append(chunk)

                with pytest.raises(openai.APIError, match="was revoked while it ran") as raised:
                    await rest()
                assert not isinstance(raised.value, openai.APIConnectionError), "it must not look like a lost network"
                assert raised.value.code == "credential_revoked"
                assert got[0].choices
            assert [row.termination for row in await made.settled()] == ["revoked"]

    asyncio.run(story())


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_byte_it_is_a_401(tmp_path: Path, stream: bool) -> None:
    """A call whose answer has not begun is refused as any other, and its prompt is metered: the upstream has it."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client:
            await client.send(chat({"first_ms": 60_000}, stream=stream), x_request_id="one")
            await until(lambda: made.weir.upstream.ledger.n == 1)
            made.revoke()
            await made.look()
            answer = await client.answer()
            assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (
                401,
                "credential_revoked",
                "false",
            )
            (row,) = await made.settled(one=ledger.Seen("refused", 401))
            assert (row.termination, row.status, row.relayed_bytes, row.completion_tokens) == ("revoked", 401, 0, 0)
            assert row.prompt_tokens > 0

    asyncio.run(story())


def test_a_call_that_waits_for_a_connection(tmp_path: Path) -> None:
    """One that stands in the queue for its upstream is refused where it stands; its place goes to the next."""

    async def story() -> None:
        written = {"upstreams": {"mock": {"max_connections": 1}}}
        async with stage(tmp_path, written=written) as made, client_of(made) as first, client_of(made) as second:
            await first.send(chat(LONG, stream=True), x_request_id="one")
            _, headers = await first.head()
            await second.send(chat(), x_request_id="two")
            (pool,) = made.weir.house.pools()
            await until(lambda: pool.waiting == 1)
            made.revoke()
            await made.look()
            answer = await second.answer()
            assert (answer.status, answer.code) == (401, "credential_revoked")
            payload, whole = await first.rest(headers)
            assert whole
            rows = await made.settled(one=seen(payload), two=ledger.Seen("refused", 401))
            assert [row.termination for row in rows] == ["revoked", "revoked"]
            assert {row.prompt_tokens for row in rows if row.request_id == "two"} == {0}, "it never went upstream"
            made.table.ended = False  # as another key would
            made.weir.epoch.arena.raise_word(board.KEYS_CREATED)
            assert (await second.call(chat({"tokens": 1}))).status == 200
            assert pool.waiting == 0

    asyncio.run(story())


def test_half_a_frame_does_not_hold_it_up(tmp_path: Path) -> None:
    """The rest of a frame that its upstream never sends is waited for shortly; then the connection ends, unclean."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client:
            script = {"tokens": 2, "split": [100], "split_ms": 60_000}
            await client.send(chat(script, stream=True, stream_options={"include_usage": True}), x_request_id="one")
            _, headers = await client.head()
            parts = client.parts(headers)
            got = await anext(parts)
            assert not got.endswith(b"\n\n")
            made.revoke()
            await made.look()
            with pytest.raises((EOFError, OSError)):
                await anext(parts)
            assert ended(client)
            (row,) = await made.settled(one=ledger.Seen("cut", 200, 0, len(got)))
            assert row.termination == "revoked"

    asyncio.run(story())


def test_a_whole_answer_that_has_begun(tmp_path: Path) -> None:
    """An answer that is no stream has no place for an error: its connection ends, so that nobody takes it for whole."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client:
            script = {"tokens": 2, "word": "x" * 4000, "split": [2000, 10], "split_ms": 60_000}
            await client.send(chat(script), x_request_id="one")
            _, headers = await client.head()
            made.revoke()
            await made.look()
            payload, whole = await client.rest(headers)
            assert not whole
            assert ended(client)
            (row,) = await made.settled(one=ledger.Seen("cut", 200, 0, len(payload)))
            assert row.termination == "revoked"

    asyncio.run(story())


@pytest.mark.parametrize("where", ["tenant", "weir.yaml"])
def test_finish_lets_it_go_on(tmp_path: Path, where: str) -> None:
    """With `on_revoke: finish` a running stream comes to its own end, and the next request is refused."""

    async def story() -> None:
        more: dict[str, Any] = {"tenant": {"on_revoke": "finish"}}
        if where == "weir.yaml":
            more = {"written": {"identity": {"on_revoke": "finish"}}}
        async with stage(tmp_path, **more) as made, client_of(made) as client:
            await client.send(chat({"tokens": 10, "delay_ms": 10}, stream=True), x_request_id="one")
            _, headers = await client.head()
            made.revoke()
            await made.look()
            payload, whole = await client.rest(headers)
            assert whole
            assert payload.endswith(b"data: [DONE]\n\n")
            assert (await client.call(chat())).status == 401
            (row,) = await made.settled()
            assert (row.termination, row.completion_tokens) == ("complete", 10)

    asyncio.run(story())


def test_a_held_look_up_cannot_bring_a_key_back(tmp_path: Path) -> None:
    """The row was read before the key was revoked and arrives after: neither that request nor a later one passes."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client, client_of(made) as later:
            reading, release = asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                reading.set()
                await release.wait()

            made.table.before = hold
            await client.send(chat({"tokens": 1}))
            await reading.wait()
            made.revoke()
            await later.send(chat({"tokens": 1}))
            release.set()
            for answer in (await client.answer(), await later.answer()):
                assert (answer.status, answer.code) == (401, "invalid_api_key")
            for _ in range(3):
                assert (await client.call(chat({"tokens": 1}))).status == 401
            assert await made.settled() == []
            assert made.weir.upstream.ledger.n == 0

    asyncio.run(story())


def test_a_held_renewal_cannot_bring_a_key_back(tmp_path: Path) -> None:
    """The same where the worker itself had asked again about what it knows, and about what runs."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client, client_of(made) as other:
            assert (await client.call(chat({"tokens": 1}), x_request_id="zero")).status == 200
            await client.send(chat(LONG, stream=True), x_request_id="one")
            _, headers = await client.head()

            async def overtaken() -> None:
                made.revoke()

            for again in (made.weir.house.keys.renew, made.look):
                made.table.ended = False
                made.table.before = overtaken
                made.weir.epoch.arena.raise_word(board.KEYS_GENERATION)
                await again()  # it asks, and is told of the time before
                assert (await other.call(chat())).status == 401
            await made.look()
            payload, whole = await client.rest(headers)
            assert whole
            rows = await made.settled()
            assert [(row.request_id, row.termination) for row in rows] == [("zero", "complete"), ("one", "revoked")]
            assert seen(payload).frames == rows[1].relayed_frames

    asyncio.run(story())


def test_a_key_that_ends_while_the_body_comes(tmp_path: Path) -> None:
    """Who was let in to send a body is looked at again when it is there: a slow client gains nothing."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client:
            whole = request(chat({"tokens": 1}), made.weir.key)
            client.writer.write(whole[:-5])
            await until(lambda: made.table.asked == 1)
            made.revoke()
            client.writer.write(whole[-5:])
            answer = await client.answer()
            assert (answer.status, answer.code) == (401, "invalid_api_key")
            assert made.weir.upstream.ledger.n == 0

    asyncio.run(story())


def test_what_could_not_be_asked_is_asked_again(tmp_path: Path) -> None:
    """With the database away a running stream goes on, since nobody can say that it may not; then it is cut."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client:
            await client.send(chat(LONG, stream=True), x_request_id="one")
            _, headers = await client.head()
            parts = client.parts(headers)
            made.revoke()
            made.table.away = True
            for _ in range(3):
                await made.look()
                payload = await anext(parts)
                assert b"credential_revoked" not in payload
            made.table.away = False
            await made.look()
            assert b"credential_revoked" in b"".join([part async for part in parts])
            assert [row.termination for row in await made.settled()] == ["revoked"]

    asyncio.run(story())


def test_a_call_that_a_change_overtook_is_looked_at(tmp_path: Path) -> None:
    """Admitted while the next change was already there: it is looked at, although the word has not moved since."""

    async def story() -> None:
        async with stage(tmp_path) as made, client_of(made) as client:

            async def again() -> None:
                made.weir.epoch.arena.raise_word(board.KEYS_GENERATION)

            async def twice() -> None:
                await again()
                made.table.before = revoked

            async def revoked() -> None:
                made.revoke()
                await made.look()  # before the call runs

            made.table.before = twice
            await client.send(chat(LONG, stream=True), x_request_id="one")
            _, headers = await client.head()
            assert made.table.ended, "it was looked up twice, and revoked behind the second time"
            await made.look()
            _, whole = await client.rest(headers)
            assert whole
            assert [row.termination for row in await made.settled()] == ["revoked"]

    asyncio.run(story())


def test_a_suspended_tenant(tmp_path: Path) -> None:
    """A policy that suspends a tenant, or leaves it out, ends what runs for it."""

    async def story() -> None:
        async with stage(tmp_path) as made:
            for tenants in ({"status": "suspended"}, None):
                policy = made.weir.house.policy
                async with client_of(made) as client:
                    await client.send(chat(LONG, stream=True))
                    _, headers = await client.head()
                    acme = policy.tenants["acme"]
                    changed: Policy = structs.replace(
                        policy, tenants={} if tenants is None else {"acme": structs.replace(acme, status="suspended")}
                    )
                    made.weir.house.adopt(changed)
                    await made.weir.house.running.adopt(changed)
                    payload, whole = await client.rest(headers)
                    assert whole
                    assert b'"tenant_suspended"' in payload
                made.weir.house.adopt(policy)
            assert [row.termination for row in await made.settled()] == ["revoked", "revoked"]

    asyncio.run(story())


def test_the_user_of_a_token_is_disabled(tmp_path: Path) -> None:
    """A token cannot be revoked, its user can be disabled: the streams of all their tokens end."""
    disabled: set[Identity] = set()

    async def disabled_among(identities: Sequence[Identity]) -> Collection[Identity]:
        return disabled & set(identities)

    published = tmp_path / "jwks.json"
    published.write_text(json.dumps(key_set(jwk("rsa"))))
    corp = {"issuer": ISSUER, "tenants": ["acme"], "audiences": ["weir"], "keys": f"file:{published}"}

    async def story() -> None:
        counters = Counters(tmp_path / "issuer-metrics", 0)
        issuers = Issuers(IssuerMetrics(counters))
        try:
            async with stage(
                tmp_path,
                written={"issuers": {"corp": corp}},
                tokens=lambda arena: Tokens(arena, issuers, disabled_among),
            ) as made:
                ended, other = (Client(made.weir, token(sub=sub).decode()) for sub in ("u-1", "u-2"))  # type: ignore[arg-type]
                async with ended, other:
                    for client in (ended, other):
                        await client.send(chat(LONG, stream=True))
                    heads = [(await client.head())[1] for client in (ended, other)]
                    disabled.add((ISSUER, "u-1"))
                    made.weir.epoch.arena.raise_word(board.KEYS_GENERATION)
                    await made.look()
                    payload, whole = await ended.rest(heads[0])
                    assert whole
                    assert b'"credential_revoked"' in payload
                    assert (await ended.call(chat())).code == "token_revoked"
                    assert b"credential_revoked" not in await anext(other.parts(heads[1]))
                rows = await made.settled()
                assert sorted(row.termination for row in rows) == ["client_gone", "revoked"]
        finally:
            await issuers.close()
            counters.close()

    asyncio.run(story())


def test_refused_while_nobody_knows(tmp_path: Path) -> None:
    """`on_stale: refuse`: with no look at the keys for longer than the bound everybody is told to try again later."""

    async def story() -> None:
        written = {"identity": {"on_stale": "refuse", "freshness_seconds": 1}}
        async with stage(tmp_path, written=written) as made, client_of(made) as client:
            arena = made.weir.epoch.arena
            arena.set_word(board.KEYS_ON_STALE, board.REFUSE)
            arena.set_word(board.KEYS_FRESH_NS_MAX, 1_000_000_000)
            arena.set_word(board.KEYS_FRESH_NS, clock.now_ns() + 3_600_000_000_000)
            assert (await client.call(chat({"tokens": 1}))).status == 200
            assert made.weir.house.readiness() == (200, "ok")
            arena.set_word(board.KEYS_FRESH_NS, clock.now_ns() - 1_000_000_001)
            refused: Answer = await client.call(chat())
            assert (refused.status, refused.code) == (503, "keys_unchecked")
            assert (refused.headers["x-should-retry"], refused.headers["retry-after-ms"]) == ("true", "1000")
            assert made.weir.house.readiness() == (503, "keys unchecked")
            arena.set_word(board.KEYS_ON_STALE, board.ALLOW)
            assert made.weir.house.readiness() == (200, "degraded: keys unchecked")
            made.weir.house.gate.refuse_stale = False  # as a new policy would say
            assert (await client.call(chat({"tokens": 1}))).status == 200

    asyncio.run(story())


class Stub:
    """A call as far as `Running` knows it."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.ended: Refusal | None = None
        self.connecting = None
        self.relay = None


def test_thousands_at_once_cost_few_questions(tmp_path: Path) -> None:
    """A bulk revocation under a full worker: the keys of what runs are asked about in parts, one part at a time."""

    async def story() -> None:
        async with stage(tmp_path) as made:
            running = made.weir.house.running
            most = open_now = 0

            async def slowly(digests: Sequence[bytes], row: KeyRow) -> Sequence[KeyRow]:
                nonlocal most, open_now
                open_now += 1
                most = max(most, open_now)
                await asyncio.sleep(0)
                open_now -= 1
                assert len(digests) <= bounds.KEYS_RENEWED_AT_ONCE
                return [structs.replace(row, digest=digest) for digest in digests if digest[0] % 2]

            asked = 0

            async def look_up_all(digests: Sequence[bytes]) -> Sequence[KeyRow]:
                nonlocal asked
                asked += 1
                return await slowly(digests, made.weir.row)

            made.weir.house.keys._look_up_all = look_up_all
            principal = (await known_of(made)).principal
            calls: list[Any] = [Stub(Known(principal, 0, bytes([n % 256, n // 256]))) for n in range(4000)]
            for call in calls * 2:
                running.enter(call)
            made.weir.epoch.arena.raise_word(board.KEYS_GENERATION)
            await made.look()
            assert (most, asked) == (1, 4000 // bounds.KEYS_RENEWED_AT_ONCE)
            ended = {call.known.credential for call in calls if call.ended is not None}
            assert ended == {call.known.credential for call in calls if not call.known.credential[0] % 2}
            for call in calls:
                running.leave(call)

    asyncio.run(story())


async def known_of(made: Stage) -> Known:
    """The worker's own key, looked up."""
    return await made.weir.house.keys.look_up(made.weir.key.encode())
