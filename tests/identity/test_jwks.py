"""Keys are there before they are needed, follow their issuer's rotation, and outlive its absence for a bounded time."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from aiohttp import web

from proxy import bounds, clock
from proxy.errors import KINDS, Refusal
from proxy.identity import jwks
from proxy.identity.jwks import KeysUnavailable, published, usable
from proxy.identity.shelf import Shelf
from proxy.policy.issuing import Algorithm
from tests.identity.forge import ISSUER, desk, issuer, jwk, key_set, token

SECOND_NS = 1_000_000_000


class Clock:
    """The clock of durations, shifted; for the modules that read it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift_ns = 0
        for name in ("jwks", "tokens"):
            monkeypatch.setattr(f"proxy.identity.{name}.now_ns", self.now_ns)
        monkeypatch.setattr("proxy.clock.now_ns", self.now_ns)

    def now_ns(self) -> int:
        return clock.time.clock_gettime_ns(clock.time.CLOCK_BOOTTIME) + self.shift_ns

    def skip(self, seconds: float) -> None:
        self.shift_ns += int(seconds * SECOND_NS)


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def until(happened: Callable[[], object], seconds: float = 120) -> None:
    """Waits for what other tasks will do."""
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.005)


def new(key: str = "rsa-2", **more: Any) -> bytes:
    """A token by a key that the desk does not publish at first."""
    return token(key, **more)


# === rotation ===


def test_a_new_key_is_asked_for_once_by_all(tmp_path: Path) -> None:
    """A hundred requests with a key that was just published wait for one fetch, and none of them fails."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            old = token()
            assert await made.code(old) == ""
            made.published[ISSUER] = key_set(jwk("rsa-2"), jwk("rsa"))
            made.gate = asyncio.Event()
            waiting = [asyncio.create_task(made.code(new(jti=str(number)))) for number in range(100)]
            await until(lambda: len(made.fetched) == 2)
            # Keys of before serve meanwhile, as if nothing went on.
            assert await made.code(old) == ""
            assert await made.code(token(jti="x")) == ""
            made.gate.set()
            assert set(await asyncio.gather(*waiting)) == {""}
            assert made.fetched == ["corp", "corp"]

    asyncio.run(story())


def test_a_key_published_while_an_older_set_is_on_its_way(tmp_path: Path) -> None:
    """A fetch that began before the rotation does not stand for the one that the new key needs."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            await made.code(token())
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            made.gate = asyncio.Event()
            refresh = asyncio.create_task(keys._join())  # the background's, of the old set
            await until(lambda: len(made.fetched) == 2)
            made.published[ISSUER] = key_set(jwk("rsa-2"), jwk("rsa"))
            waiting = [asyncio.create_task(made.code(new(jti=str(number)))) for number in range(10)]
            await asyncio.sleep(0)
            made.gate.set()
            assert set(await asyncio.gather(*waiting)) == {""}
            assert await refresh
            assert len(made.fetched) == 3

    asyncio.run(story())


def test_withdrawn_keys_end_their_verdicts(tmp_path: Path, shifted: Clock) -> None:
    """A key that is no longer published proves nothing from that fetch on, remembered tokens included; others stay."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            by_old, by_other = token(), token("p256", "ES256")
            known = await made.identify(by_other)
            assert await made.code(by_old) == ""
            made.published[ISSUER] = key_set(jwk("rsa-2"), jwk("p256"))
            assert await made.code(by_old) == ""  # nobody has told us
            assert await made.code(new()) == ""
            assert await made.identify(by_other) is known
            assert await made.code(by_old) == "issuer_unavailable"  # it could be a name of the next rotation
            shifted.skip(bounds.JWKS_ASK_SECONDS)
            assert await made.code(by_old) == "token_key"

    asyncio.run(story())


def test_a_key_that_changes_under_its_name(tmp_path: Path, shifted: Clock) -> None:
    """Another key under the old name is another key: what the old one proved is over."""

    async def story() -> None:
        async with desk(tmp_path, issuer(refresh_seconds=5)) as made:
            said = token()
            assert await made.code(said) == ""
            made.published[ISSUER] = key_set(jwk("rsa-2", kid="rsa"))
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            assert await keys._join()
            assert await made.code(said) == "token_signature"
            assert await made.code(token("rsa-2", header={"kid": "rsa"})) == ""

    asyncio.run(story())


def test_keys_without_names_rotate_in_place(tmp_path: Path) -> None:
    """A token that came before its key was fetched is refused by the old one, and taken once the new one is there."""

    async def story() -> None:
        async with desk(tmp_path, published={ISSUER: key_set(jwk("rsa", kid=None))}) as made:
            early, forged = new(header={"kid": None}), token("ed", "EdDSA", header={"kid": None})
            assert await made.code(token(header={"kid": None})) == ""
            assert await made.code(early) == await made.code(early) == "token_signature"
            assert await made.code(forged) == "token_key"
            made.published[ISSUER] = key_set(jwk("rsa-2", kid=None))
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            assert await keys._join()
            assert await made.code(early) == ""
            assert await made.code(token(header={"kid": None})) == "token_signature"

    asyncio.run(story())


def test_unknown_names_ask_once_a_minute(tmp_path: Path, shifted: Clock) -> None:
    """A name that was asked for in vain is refused; others wait out the minute by a 503 that says for how long."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            await made.code(token())
            assert await made.code(new()) == "token_key"
            assert await made.code(new(jti="again")) == "token_key"
            with pytest.raises(Refusal) as caught:
                await made.identify(token("rsa-3"))
            assert caught.value.code == "issuer_unavailable"
            assert caught.value.kind.retry
            assert 0 < caught.value.retry_after_ms <= bounds.JWKS_ASK_SECONDS * 1000
            assert made.fetched == ["corp", "corp"]
            made.published[ISSUER] = key_set(jwk("rsa"), jwk("rsa-3"))
            shifted.skip(caught.value.retry_after_ms / 1000)
            assert await made.code(token("rsa-3")) == ""
            assert await made.code(token()) == ""
            assert made.fetched == ["corp"] * 3

    asyncio.run(story())


def test_keys_are_refreshed_in_the_background(tmp_path: Path) -> None:
    """Without any request the set is read again and again, and a new key is there before it is used."""

    async def story() -> None:
        async with desk(tmp_path, issuer(refresh_seconds=0)) as made:
            await until(lambda: len(made.fetched) >= 3)
            made.published[ISSUER] = key_set(jwk("rsa-2"))
            seen = len(made.fetched)
            await until(lambda: len(made.fetched) >= seen + 2)
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            assert keys.find("rsa-2", "RS256", clock.now_ns()) is not None
            assert keys._asked_ns is None

    asyncio.run(story())


# === absence ===


def test_the_last_good_keys_serve_until_they_are_stale(tmp_path: Path, shifted: Clock) -> None:
    """While the issuer is away its keys go on, visibly; when they are stale nothing is proved, until it is back."""

    async def story() -> None:
        async with desk(tmp_path, issuer(stale_seconds=1000)) as made:
            said = token(exp=int(clock.wall_us() // 1_000_000) + 100_000)
            assert await made.code(said) == ""
            made.published[ISSUER] = KeysUnavailable("away")
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            assert not await keys._join()
            assert made.told.refreshes == [("corp", True), ("corp", False)]
            shifted.skip(900)
            assert await made.code(said) == ""
            assert await made.code(token()) == ""
            shifted.skip(101)
            assert await made.code(said) == "issuer_unavailable"
            assert await made.code(token(jti="2")) == "issuer_unavailable"
            made.published[ISSUER] = key_set(jwk("rsa"))
            assert await keys._join()
            assert await made.code(said) == ""
            assert made.told.refreshes[-1] == ("corp", True)

    asyncio.run(story())


def test_an_issuer_that_was_never_there(tmp_path: Path) -> None:
    """Its tokens are a 503 at once, without a fetch each; once it is there they are taken without being asked again."""

    async def story() -> None:
        async with desk(tmp_path, published={ISSUER: KeysUnavailable("away")}) as made:
            assert {await made.code(token(jti=str(number))) for number in range(20)} == {"issuer_unavailable"}
            assert len(made.fetched) < 20
            made.published[ISSUER] = key_set(jwk("rsa"))
            await until(lambda: ("corp", True) in made.told.refreshes)
            assert await made.code(token()) == ""
            assert KINDS["issuer_unavailable"].status == 503

    asyncio.run(story())


def test_a_failed_fetch_for_a_new_name_is_no_verdict(tmp_path: Path, shifted: Clock) -> None:
    """When the issuer cannot be asked about a name, the token is neither good nor bad."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            await made.code(token())
            made.published[ISSUER] = KeysUnavailable("away")
            assert await made.code(new()) == "issuer_unavailable"
            made.published[ISSUER] = key_set(jwk("rsa"), jwk("rsa-2"))
            shifted.skip(bounds.JWKS_ASK_SECONDS)
            assert await made.code(new()) == ""

    asyncio.run(story())


def test_absence_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Going away is one line however often it is tried, coming back another."""
    caplog.set_level("INFO", "weir.identity")

    async def story() -> None:
        async with desk(tmp_path, issuer(refresh_seconds=0)) as made:
            await until(lambda: made.told.refreshes)
            made.published[ISSUER] = KeysUnavailable("its house is dark")
            await until(lambda: made.told.refreshes.count(("corp", False)) >= 4)
            made.published[ISSUER] = key_set(jwk("rsa"))
            await until(lambda: made.told.refreshes[-1] == ("corp", True))

    asyncio.run(story())
    lines = [line for line in caplog.messages if "fetched" in line or "fresh" in line]
    assert lines == [
        "the keys of the issuer corp cannot be fetched: its house is dark",
        "the keys of the issuer corp are fresh again",
    ]


def test_a_client_that_leaves_ends_its_own_wait_only(tmp_path: Path) -> None:
    """Cancelling one of two waiting requests leaves the fetch to the other."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            await made.code(token())
            made.published[ISSUER] = key_set(jwk("rsa-2"))
            made.gate = asyncio.Event()
            leaves, stays = (asyncio.create_task(made.code(new(jti=name))) for name in "ab")
            await until(lambda: len(made.fetched) == 2)
            leaves.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaves
            made.gate.set()
            assert await stays == ""

    asyncio.run(story())


def test_a_policy_that_changes_while_its_issuer_is_asked(tmp_path: Path) -> None:
    """A request that waits for the keys of an issuer that is gone is told to come again, and nothing hangs."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            await made.code(token())
            made.gate = asyncio.Event()
            waiting = asyncio.create_task(made.code(new()))
            await until(lambda: len(made.fetched) == 2)
            made.tokens.adopt({"corp": issuer(audiences=("weir", "more"))})
            async with asyncio.timeout(120):
                assert await waiting == "issuer_unavailable"
            made.gate.set()
            assert await made.code(token()) == ""

    asyncio.run(story())


def test_a_reload_needs_no_issuer(tmp_path: Path) -> None:
    """Rules that change while the issuer is away are judged by the keys that are there; other keys' places are not."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            assert await made.code(token()) == ""
            made.published[ISSUER] = KeysUnavailable("away")
            made.tokens.adopt({"corp": issuer(audiences=("weir", "more"))})
            assert await made.code(token()) == ""
            assert await made.code(token(aud="more")) == ""
            made.tokens.adopt({"corp": issuer(keys="https://elsewhere.example/jwks")})
            assert await made.code(token()) == "issuer_unavailable"

    asyncio.run(story())


def test_waiting_for_keys_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request does not wait for keys beyond its bound, whatever is under way; the fetch goes on."""
    monkeypatch.setattr(bounds, "JWKS_WAIT_SECONDS_MAX", 0.05)

    async def story() -> None:
        async with desk(tmp_path) as made:
            assert await made.code(token()) == ""
            made.published[ISSUER] = key_set(jwk("rsa-2"))
            made.gate = asyncio.Event()
            assert await made.code(new()) == "issuer_unavailable"
            made.gate.set()
            monkeypatch.setattr(bounds, "JWKS_WAIT_SECONDS_MAX", 20)
            assert await made.code(new()) == ""
            assert len(made.fetched) == 2

    asyncio.run(story())


def test_a_set_without_a_usable_key_changes_nothing(tmp_path: Path) -> None:
    """An issuer that suddenly publishes nothing usable counts as away: the keys of before go on."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            assert await made.code(token()) == ""
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            for document in ({"keys": []}, {}, {"keys": [jwk("rsa", use="enc")]}, {"keys": "none"}, {"keys": [1]}):
                made.published[ISSUER] = document
                assert not await keys._join()
            assert await made.code(token(jti="2")) == ""

    asyncio.run(story())


def test_a_set_is_bounded() -> None:
    """A set of more keys than the bound is no set; keys with odd names are left out of one."""
    with pytest.raises(KeysUnavailable, match="more than 100 keys"):
        usable(key_set(*[jwk("rsa")] * 101), issuer())
    keys, kids = usable(key_set(jwk("rsa", kid="k" * 257), jwk("rsa", kid=7), jwk("p256")), issuer())
    assert kids == {"p256"}
    assert set(keys) == {("p256", "ES256"), (None, "ES256")}


# === fetching, over real sockets ===


@asynccontextmanager
async def serving(routes: dict[str, Any]) -> AsyncIterator[tuple[str, list[web.BaseRequest]]]:
    """An identity provider's web server on the loopback: path → a document, bytes, or a handler."""
    seen: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request)
        said = routes.get(request.path)
        if callable(said):
            return await said(request)  # type: ignore[no-any-return]
        if said is None:
            return web.Response(status=404)
        return web.Response(body=said if isinstance(said, bytes) else json.dumps(said).encode())

    server = web.Server(answer, handler_cancellation=True)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        await runner.cleanup()


def fetch(routes: Callable[[str], dict[str, Any]], keys: str | None = None, **policy: Any) -> tuple[Any, list[Any]]:
    """What `published` makes of this server, or the sentence of its refusal, and the requests that it saw."""

    async def story() -> tuple[Any, list[Any]]:
        served: dict[str, Any] = {}
        async with serving(served) as (base, seen):
            served.update(routes(base))
            asked = issuer(issuer=f"{base}/realm", keys=None if keys is None else base + keys, **policy)
            try:
                return await published(asked), seen
            except KeysUnavailable as error:
                return str(error).replace(base, ""), seen

    return asyncio.run(story())


FOUND = "/realm/.well-known/openid-configuration"


def test_discovery() -> None:
    """Keys are found through the issuer's own document, with nothing of ours in the request but its purpose."""
    document, seen = fetch(
        lambda base: {FOUND: {"issuer": f"{base}/realm", "jwks_uri": f"{base}/k"}, "/k": key_set(jwk("rsa"))}
    )
    assert document == key_set(jwk("rsa"))
    assert [request.path for request in seen] == [FOUND, "/k"]
    assert set(seen[0].headers) == {"Host", "Accept", "Accept-Encoding", "User-Agent", "Connection"}
    assert seen[0].headers["Accept-Encoding"] == "identity"


def redirect(location: str) -> Any:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": location})

    return answer


async def endless(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    try:
        while True:
            await answer.write(b" " * 65536)
    except ConnectionError:
        return answer


async def lost(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"keys":')
    assert request.transport is not None
    request.transport.abort()
    return answer


WRONG: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "nothing there": (lambda base: {}, f"{FOUND} answers 404"),
    "another issuer's document": (
        lambda base: {FOUND: {"issuer": "https://evil.example", "jwks_uri": f"{base}/k"}, "/k": key_set(jwk("rsa"))},
        "its discovery document is that of another issuer",
    ),
    "an issuer with a slash more": (
        lambda base: {FOUND: {"issuer": f"{base}/realm/", "jwks_uri": f"{base}/k"}},
        "its discovery document is that of another issuer",
    ),
    "no jwks_uri": (lambda base: {FOUND: {"issuer": f"{base}/realm"}}, "its discovery document names no jwks_uri"),
    "a jwks_uri that is no address": (
        lambda base: {FOUND: {"issuer": f"{base}/realm", "jwks_uri": "file:///etc/passwd"}},
        "file:///etc/passwd: not an address; write https://host/path",
    ),
    "a jwks_uri over http elsewhere": (
        lambda base: {FOUND: {"issuer": f"{base}/realm", "jwks_uri": "http://169.254.169.254/latest"}},
        "http://169.254.169.254/latest: http: whoever is on the way could give us keys of their own; write https",
    ),
    "a redirect": (lambda base: {FOUND: redirect("/k"), "/k": key_set(jwk("rsa"))}, f"{FOUND} answers 302"),
    "no JSON": (lambda base: {FOUND: b"<html>"}, f"{FOUND} holds no JSON object"),
    "a member twice": (lambda base: {FOUND: b'{"issuer":"a","issuer":"b"}'}, f"{FOUND} holds no JSON object"),
    "an answer without end": (
        lambda base: {FOUND: endless},
        f"{FOUND} answers more than {bounds.JWKS_BYTES_MAX} bytes",
    ),
}


@pytest.mark.parametrize(("routes", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_answers_that_are_not_taken(routes: Callable[[str], dict[str, Any]], sentence: str) -> None:
    """Whatever else an issuer answers gives no keys and one sentence for the log."""
    said, _ = fetch(routes)
    assert said == sentence


def test_an_answer_that_is_cut() -> None:
    """An answer that ends too early is no answer."""
    said, _ = fetch(lambda base: {"/k": lost}, "/k")
    assert isinstance(said, str)
    assert said.startswith("/k: ")


def test_a_fixed_address() -> None:
    """With an address for the keys nothing is discovered."""
    document, seen = fetch(lambda base: {"/k": key_set(jwk("rsa"))}, "/k")
    assert document == key_set(jwk("rsa"))
    assert [request.path for request in seen] == ["/k"]


def test_http_needs_the_operators_word() -> None:
    """Plain http is refused on the loopback too, unless the policy allows it."""
    said, seen = fetch(lambda base: {"/k": key_set(jwk("rsa"))}, "/k", http_loopback=False)
    assert said == "/k: http: write https, or allow it on the loopback by http_loopback: true"
    assert not seen


def test_a_slow_issuer_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that accepts and is silent is left at the bound, and the request that waited gets its 503."""
    monkeypatch.setattr(bounds, "JWKS_FETCH_SECONDS_MAX", 0.2)

    async def silent(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async def story() -> None:
        async with serving({"/k": silent}) as (base, _):
            async with desk(tmp_path, issuer(keys=f"{base}/k")) as made:
                await made.issuers.close()
                made.issuers._fetch = published
                made.tokens.adopt({"corp": issuer(keys=f"{base}/k")})
                async with asyncio.timeout(120):
                    assert await made.code(token()) == "issuer_unavailable"

    asyncio.run(story())


def test_a_file_of_keys(tmp_path: Path) -> None:
    """A host without an issuer in reach reads the keys from a file, and a changed file is read again."""
    path = tmp_path / "corp.jwks.json"
    path.write_text(json.dumps(key_set(jwk("rsa"))))

    async def story() -> None:
        here = issuer(keys=f"file:{path}", issuer="corp")
        async with desk(tmp_path) as made:
            made.issuers._fetch = published
            made.tokens.adopt({"corp": here})
            assert await made.code(token(iss="corp")) == ""
            path.write_text(json.dumps(key_set(jwk("rsa-2"))))
            assert await made.code(token("rsa-2", iss="corp")) == ""
            path.write_bytes(b" " * (bounds.JWKS_BYTES_MAX + 1))
            with pytest.raises(KeysUnavailable, match="has more than"):
                await published(here)
            path.unlink()
            with pytest.raises(KeysUnavailable, match="No such file"):
                await published(here)

    asyncio.run(story())


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    """A bundle that is missing or is none is a sentence in the log and not a fault."""
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(KeysUnavailable, match=name):
            asyncio.run(published(issuer(ca_bundle=str(tmp_path / name))))


def test_an_unexpected_fault_ends_nothing(tmp_path: Path) -> None:
    """A fetch that fails in a way nobody foresaw is a failed fetch, and the next one is made."""

    async def story() -> None:
        async with desk(tmp_path, published={ISSUER: ZeroDivisionError("odd")}) as made:
            assert await made.code(token()) == "issuer_unavailable"
            made.published[ISSUER] = key_set(jwk("rsa"))
            await until(lambda: ("corp", True) in made.told.refreshes)
            assert await made.code(token()) == ""

    asyncio.run(story())


def test_the_tables_agree() -> None:
    """Every algorithm that a policy may name has its kind of key."""
    assert set(jwks._FITTING) == set(get_args(Algorithm))


# === kept on disk ===


AWAY = {ISSUER: KeysUnavailable("away")}


def test_a_worker_starts_while_the_issuer_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by the keys that the host fetched last, counts them as aged, and drops them when they are stale."""

    async def story() -> None:
        shelf = Shelf(tmp_path)
        private = {**jwk("p256"), "kid": "shown", "d": "AAAA"}
        async with desk(tmp_path, published={ISSUER: key_set(jwk("rsa"), private)}, shelf=shelf) as made:
            assert await made.code(token()) == ""
        (path,) = (tmp_path / "issuers").iterdir()
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert b"shown" not in path.read_bytes()
        wall = clock.wall_us()
        async with desk(tmp_path, published=AWAY) as made:
            assert await made.code(token()) == "issuer_unavailable"  # as it is where nothing was kept
        for seconds, code in ((0, ""), (3000, ""), (3600, "issuer_unavailable"), (-3000, "issuer_unavailable")):
            monkeypatch.setattr(jwks, "wall_us", lambda seconds=seconds: wall + seconds * 1_000_000)
            async with desk(tmp_path, published=AWAY, shelf=shelf) as made:
                assert await made.code(token(jti=str(seconds))) == code, seconds
                assert (made.told.refreshes[0], made.fetched[0]) == (("corp", False), "corp")
        monkeypatch.undo()
        shifted = Clock(monkeypatch)
        async with desk(tmp_path, published=AWAY, shelf=shelf) as made:
            assert await made.code(token()) == ""
            assert await made.code(new()) == "issuer_unavailable"  # it could be a name of the next rotation
            shifted.skip(3600)
            assert await made.code(token()) == "issuer_unavailable"
            made.published[ISSUER] = key_set(jwk("rsa-2"))
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            assert await keys._join()
            assert await made.code(new()) == ""
            assert await made.code(token(jti="1")) == "token_key"

    asyncio.run(story())


def test_a_withdrawn_key_does_not_come_back(tmp_path: Path) -> None:
    """What is kept proves nothing while the issuer may yet answer, nor after it has."""

    async def story() -> None:
        shelf = Shelf(tmp_path)
        async with desk(tmp_path, shelf=shelf) as made:
            assert await made.code(token()) == ""
        async with desk(tmp_path, published={ISSUER: key_set(jwk("rsa-2"))}, shelf=shelf) as made:
            made.gate = asyncio.Event()
            waiting = asyncio.create_task(made.code(token()))
            await until(lambda: made.fetched)
            await asyncio.sleep(0.05)
            assert not waiting.done()
            made.gate.set()
            assert await waiting != ""
            assert await made.code(new()) == ""
        async with desk(tmp_path, published=AWAY, shelf=shelf) as made:
            assert [await made.code(token()), await made.code(new())] == ["issuer_unavailable", ""]

    asyncio.run(story())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(path.read_bytes().replace(ISSUER.encode(), b"https://other.example")),
        lambda path: path.write_bytes(b'{"issuer":1,"issuer":2}'),
        lambda path: path.write_bytes(b'{"document":{"keys":7},"fetched_us":1,"issuer":"x"}'),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.unlink(),
        lambda path: path.chmod(0) if os.geteuid() else path.unlink(),
    ],
)
def test_a_file_that_cannot_be_read_is_none(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """Damaged, another issuer's, no set, gone: the issuer is away as if nothing had been kept, no more."""

    async def story() -> None:
        shelf = Shelf(tmp_path)
        async with desk(tmp_path, shelf=shelf) as made:
            assert await made.code(token()) == ""
        (path,) = (tmp_path / "issuers").iterdir()
        damage(path)
        async with desk(tmp_path, published=AWAY, shelf=shelf) as made:
            assert await made.code(token()) == "issuer_unavailable"
            made.published[ISSUER] = key_set(jwk("rsa"))
            keys = made.issuers.of(ISSUER)
            assert keys is not None
            assert await keys._join()
            assert await made.code(token()) == ""
        assert path.exists()

    asyncio.run(story())


def test_what_is_kept_goes_with_the_issuer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that the policy no longer names leaves no file; one at another address starts anew; a bad disk is told of."""

    async def story() -> None:
        shelf = Shelf(tmp_path)
        elsewhere = issuer(keys="https://other.example/keys")
        async with desk(tmp_path, shelf=shelf) as made:
            assert await made.code(token()) == ""
            assert shelf.get(issuer()) is not None
            assert shelf.get(elsewhere) is None
            made.tokens.adopt({})
            assert shelf.get(issuer()) is None
            assert list((tmp_path / "issuers").iterdir()) == []
            (tmp_path / "issuers").rmdir()
            (tmp_path / "issuers").write_text("in the way")
            made.tokens.adopt({"corp": issuer()})
            assert await made.code(token(jti="1")) == ""
        assert "cannot be kept on disk" in caplog.text

    asyncio.run(story())
