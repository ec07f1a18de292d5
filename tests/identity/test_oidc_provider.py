"""The whole way with a real identity provider: users sign in there, and what they are given opens the gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from proxy import settings
from proxy.clock import wall_us
from proxy.identity.actor import operator
from proxy.identity.claims import subject_id
from proxy.identity.jwks import published
from proxy.store.people import User
from proxy.store.store import Store
from tests.identity.forge import issuer
from tests.identity.oidc import Provider
from tests.journey.calling import Answer, Client, chat, once
from tests.world.gateway import Gateway, wait_for
from tests.world.process import UpstreamProcess

WORKERS = 2
REFRESH_SECONDS = 5


class World:
    """A provider, and a Weir that trusts it."""

    def __init__(self, weir: Gateway, provider: Provider) -> None:
        self.weir = weir
        self.provider = provider

    def token(self, user: str = "ann") -> str:
        """The access token of a user who signs in now."""
        return self.provider.sign_in(user)["access_token"]

    def call(self, token: str, model: str = "m1", **headers: str) -> Answer:
        """One call on a connection of its own."""
        return asyncio.run(once(self.weir, chat({"tokens": 1}, model), token, **headers))

    def row(self, request_id: str) -> dict[str, Any]:
        """The one row of this request."""
        (row,) = wait_for(
            f"a row of {request_id}",
            lambda: [row for row in self.weir.rows() if row["request_id"] == request_id],
        )
        return dict(row)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series with these labels."""
        page = self.weir.get("/metrics")[1].decode()
        total = 0.0
        for line in page.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                total += float(value)
        return total

    def refreshed_by_all(self) -> None:
        """Waits until each worker has fetched the keys anew: none fetches four times while another does not once."""
        before = self.metric("weir_issuer_refreshes_total", result="ok")
        wait_for(
            "every worker's fetch",
            lambda: self.metric("weir_issuer_refreshes_total", result="ok") >= before + 2 * WORKERS,
            120,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two workers, so that each has to learn of every key by itself."""
    directory: Path = tmp_path_factory.mktemp("oidc")
    with Provider() as provider, UpstreamProcess(directory / "ledger.jsonl") as upstream:
        corp = {
            "issuer": provider.issuer,
            "http_loopback": True,
            "tenants": ["acme", "tight"],
            "audiences": ["weir"],
            "algorithms": ["ES256"],
            "types": ["at+jwt"],
            "refresh_seconds": REFRESH_SECONDS,
            "stale_seconds": 600,
            "claims": {"user": "name", "tenant": "org"},
            "groups": {"analysts": {"models": ["m1", "m2"]}},
        }
        weir = Gateway(directory, upstream.url, workers=WORKERS, settings={"issuers": {"corp": corp}})
        limits = {"requests_per_minute": 1, "requests_burst": 3}
        weir.write("tenants/tight.yaml", {"name": "tight", "plan": "all", "key_limits": limits})
        with weir:
            yield World(weir, provider)
            weir.assert_at_rest()


def test_the_provider_is_discovered(world: World) -> None:
    """Its own documents lead to its keys."""
    document = asyncio.run(published(issuer(issuer=world.provider.issuer)))
    assert [key["kid"] for key in document["keys"]] == ["k1"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_user_calls_with_the_sdk(world: World, stream: bool) -> None:
    """The official SDK with a token for its key streams, and the row has the tenant, the user and a stable id."""
    request_id = f"oidc-{uuid.uuid4().hex[:12]}"
    with openai.OpenAI(api_key=world.token(), base_url=world.weir.url, max_retries=0) as client:
        body: dict[str, Any] = json.loads(chat({"tokens": 5, "prompt_tokens": 3}, user="somebody else"))
        answer = client.chat.completions.create(**body, stream=stream, extra_headers={"x-request-id": request_id})
        if stream:
            text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
            assert text == "".join(f"w{n} " for n in range(5))
        assert [model.id for model in client.models.list()] == ["m1", "m2"]
    row = world.row(request_id)
    assert (row["tenant"], row["user"], row["completion_tokens"]) == ("acme", "ann of acme", 5)
    assert row["key_id"] == subject_id("acme", world.provider.issuer, "ann")
    assert row["termination"] == "complete"


def test_limits_of_a_key_are_those_of_a_user(world: World) -> None:
    """A user at the limit of each key is refused on every worker and with every token; another user is not."""
    statuses = [world.call(world.token("ben@tight")).status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert world.call(world.token("cem@tight")).status == 200


def test_what_a_token_does_not_open(world: World) -> None:
    """Other models do not exist for it, another tenant is refused, and an ID token is no key."""
    said = world.provider.sign_in("ann")
    refused = world.call(said["access_token"], "m3")
    assert (refused.status, refused.code) == (404, "model_not_found")
    refused = world.call(said["access_token"], x_tenant_id="tight")
    assert (refused.status, refused.code) == (403, "tenant_mismatch")
    assert world.call(said["access_token"], x_tenant_id="acme").status == 200
    refused = world.call(said["id_token"])
    assert (refused.status, refused.code) == (401, "token_type")
    assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert refused.headers["x-should-retry"] == "false"
    assert world.call(world.token("eve@elsewhere")).code == "tenant_mismatch"
    assert world.call(said["access_token"][:-6] + "AAAAAA").code == "token_signature"
    # Keys go on beside tokens, and what is neither is refused as before.
    assert world.call(world.weir.key).status == 200
    assert world.call("a.b").code == "token_malformed"


def test_a_disabled_user_is_refused(world: World) -> None:
    """Once a user is disabled, tokens that were good end on every worker, new ones too; other users go on."""
    process = settings.load(world.weir.config)
    token, other = world.token("dan"), world.token("ann")
    assert {world.call(token).status for _ in range(4)} == {200}

    async def disable() -> None:
        store = Store.open(process.database)
        try:
            user = User("user_dan", "Dan", wall_us(), issuer=world.provider.issuer, subject="dan")
            await store.add_user(user, operator(), None)
            await store.disable_user("user_dan", wall_us(), operator())
        finally:
            await store.close()

    asyncio.run(disable())

    def refused() -> bool:
        return {world.call(token).code for _ in range(8)} == {"token_revoked"}

    wait_for("the user to be refused", refused)
    assert world.call(world.token("dan")).code == "token_revoked"
    assert world.call(other).status == 200


def test_rotation_loses_no_request(world: World) -> None:
    """While users sign in and call all the time, keys are replaced, at once and in good order: no request fails."""
    over = threading.Event()
    answers: list[tuple[str, int, str]] = []
    faults: list[BaseException] = []

    def user(name: str) -> None:
        async def story() -> None:
            while not over.is_set():
                token = await asyncio.to_thread(world.token, name)
                kid = json.loads(_decoded(token.partition(".")[0]))["kid"]
                async with Client(world.weir, token) as client:
                    for _ in range(5):
                        answer = await client.call(chat({"tokens": 1}))
                        answers.append((kid, answer.status, answer.code))

        try:
            asyncio.run(story())
        except BaseException as fault:
            faults.append(fault)

    def calls_by(kid: str) -> None:
        wait_for(f"calls by {kid}", lambda: sum(each[0] == kid for each in answers) >= 40 or faults, 120)

    old = world.token("old")
    assert world.call(old).status == 200
    users = [threading.Thread(target=user, args=(f"user-{number}",)) for number in range(4)]
    for thread in users:
        thread.start()
    try:
        calls_by("k1")
        world.provider.publish("k2", "k1")  # signs at once with a key that nobody has seen
        calls_by("k2")
        assert world.call(old).status == 200
        world.provider.publish("k2", "k1", "k3")  # in good order: first published, later used
        world.refreshed_by_all()
        world.provider.publish("k3", "k2", "k1")
        calls_by("k3")
    finally:
        over.set()
        for thread in users:
            thread.join(120)
    assert not faults, faults
    assert {(status, code) for _, status, code in answers} == {(200, "")}
    world.provider.publish("k3")
    # What was signed by a withdrawn key ends within a refresh, on every worker, remembered or not.
    ends = {"token_key", "issuer_unavailable"}
    wait_for("the withdrawn key to end", lambda: {world.call(old).code for _ in range(30)} <= ends)
    assert world.call(world.token("new")).status == 200


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_the_provider_goes_away(world: World) -> None:
    """Without it the last keys serve new tokens and old ones, and metrics and log say that they are aged."""
    unused = world.token("late")
    wait_for("fresh keys", lambda: world.metric("weir_issuer_keys_aged") == 0, 120)
    world.provider.stop()
    wait_for("aged keys in both workers", lambda: world.metric("weir_issuer_keys_aged", issuer="corp") == WORKERS, 120)
    assert {world.call(unused).status for _ in range(8)} == {200}
    assert re.search(r"the keys of the issuer corp cannot be fetched", world.weir.stderr(200_000))
    assert world.metric("weir_issuer_refreshes_total", result="failed") >= WORKERS
