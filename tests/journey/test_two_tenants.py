"""Two tenants never see each other: what A asks with B's identifiers is answered as if they did not exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journey.conftest import House, chat, parse
from tests.world.gateway import Gateway
from tests.world.process import UpstreamProcess

DOMAIN = "weir.example.com"


class Two(House):
    """A Weir with the tenants acme and other; `other` alone may use the model others-model."""

    other_key = ""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Both tenants on one worker, so that they share every cache there is."""
    directory: Path = tmp_path_factory.mktemp("two")
    with UpstreamProcess(directory / "ledger.jsonl") as upstream:
        models = {name: {"upstream": "mock", "unpriced": True} for name in ("shared-model", "others-model")}
        limits = {"limits": {"requests_per_minute": 100_000}, "models": ["shared-model"]}
        settings = {"models": models, "listen": {"tenant_domain": DOMAIN}}
        weir = Gateway(directory, upstream.url, settings=settings, tenant=limits)
        weir.write("tenants/other.yaml", {"name": "other", "plan": "all", "limits": {"requests_per_minute": 5}})
        with weir:
            house = Two(weir, upstream)
            made = weir.weir("keys", "create", "--tenant", "other", "--json").stdout
            house.other_key = json.loads(made)["key"]
            yield house
            weir.assert_at_rest()


def ask(two: Two, method: str, path: str, key: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    """(status, headers, body) with what differs between any two requests blotted out."""
    raw = b"" if body is None else json.dumps(body).encode()
    lines = {
        "host": "weir",
        "authorization": f"Bearer {key}",
        "connection": "close",
        "x-request-id": "same",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    if body is not None:
        lines |= {"content-type": "application/json", "content-length": str(len(raw))}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    status, answered, payload = parse(two.raw(head.encode() + raw))
    for name in [name for name in answered if name.startswith("x-ratelimit-") or name == "date"]:
        del answered[name]
    return status, answered, payload


ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/tokenize"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_anothers_model_does_not_exist(two: Two, path: str) -> None:
    """A model of B's is answered to A in the same bytes as a model of nobody's."""

    def body(model: str) -> dict[str, Any]:
        return {"model": model, "messages": [], "prompt": "x", "input": "x"}

    theirs = ask(two, "POST", path, two.weir.key, body("others-model"))
    nobodys = ask(two, "POST", path, two.weir.key, body("absent-model"))
    assert theirs[0] == nobodys[0] == 404
    assert theirs[1] == nobodys[1]
    assert theirs[2].replace(b"others-model", b"absent-model") == nobodys[2]


def test_the_model_list_is_ones_own(two: Two) -> None:
    """GET /v1/models names only one's own, and fetching B's is fetching nothing."""
    status, _, listed = ask(two, "GET", "/v1/models", two.weir.key)
    assert status == 200
    assert [model["id"] for model in json.loads(listed)["data"]] == ["shared-model"]
    _, _, listed = ask(two, "GET", "/v1/models", two.other_key)
    assert "others-model" in [model["id"] for model in json.loads(listed)["data"]]
    theirs = ask(two, "GET", "/v1/models/others-model", two.weir.key)
    nobodys = ask(two, "GET", "/v1/models/absent-model", two.weir.key)
    assert theirs[0] == nobodys[0] == 404
    assert theirs[2].replace(b"others-model", b"absent-model") == nobodys[2]
    assert ask(two, "GET", "/v1/models/others-model", two.other_key)[0] == 200


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/models"])
def test_anothers_tenant_id_is_refused_like_nobodys(two: Two, path: str) -> None:
    """X-Tenant-ID may agree with the key and nothing else; the answer does not say whether that tenant exists."""
    method, body = ("GET", None) if path == "/v1/models" else ("POST", chat(model="shared-model"))
    theirs = ask(two, method, path, two.weir.key, body, x_tenant_id="other")
    nobodys = ask(two, method, path, two.weir.key, body, x_tenant_id="absent")
    assert theirs == nobodys
    assert theirs[0] == 403


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/models", "/v1/models/shared-model"])
def test_anothers_subdomain_is_refused_like_nobodys(two: Two, path: str) -> None:
    """So it is with the host that a client calls: B's answers A as one that was never given to anybody."""
    method, body = ("GET", None) if path.startswith("/v1/models") else ("POST", chat(model="shared-model"))
    theirs = ask(two, method, path, two.weir.key, body, host=f"other.{DOMAIN}")
    nobodys = ask(two, method, path, two.weir.key, body, host=f"absent.{DOMAIN}")
    mixed = ask(two, method, path, two.weir.key, body, host=f"acme.{DOMAIN}", x_tenant_id="other")
    assert theirs == nobodys == mixed
    assert theirs[0] == 403
    assert b"other" not in theirs[2]


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/models", "/v1/models/shared-model"])
def test_each_is_told_its_own_name_and_no_other(two: Two, path: str) -> None:
    """Through the same worker and its caches, each key's answer names its own tenant, also on its own subdomain."""
    method, body = ("GET", None) if path.startswith("/v1/models") else ("POST", {"model": "absent-model"})
    for key, own in ((two.weir.key, "acme"), (two.other_key, "other"), (two.weir.key, "acme")):
        for headers in ({}, {"x_tenant_id": own}, {"host": f"{own}.{DOMAIN}"}):
            assert ask(two, method, path, key, body, **headers)[1]["x-tenant-id"] == own


def test_anothers_calls_do_not_move_ones_own_estimates(two: Two) -> None:
    """What the upstream's figures teach of a model in one tenant's calls holds for that tenant alone."""

    def estimate(key: str) -> int:
        status, _, payload = ask(two, "POST", "/v1/tokenize", key, {"model": "shared-model", "input": "x" * 8000})
        assert status == 200
        found = json.loads(payload)
        assert found["source"] == "estimated"
        return int(found["tokens"])

    usage = {"prompt_tokens": 1, "completion_tokens": 2000, "total_tokens": 2001}
    said = chat({"tokens": 1, "word": "x" * 3000, "usage": usage})
    for _ in range(3):
        status, *_ = ask(two, "POST", "/v1/chat/completions", two.weir.key, {**said, "model": "shared-model"})
        assert status == 200
    assert estimate(two.weir.key) > 3500
    assert estimate(two.other_key) == 2000


def test_anothers_limits_and_rows_are_not_ones_own(two: Two) -> None:
    """B at its limit does not slow A; each call's row is its own tenant's."""
    statuses = [ask(two, "POST", ENDPOINTS[0], two.other_key, chat(model="shared-model"))[0] for _ in range(8)]
    assert statuses.count(429) >= 2
    assert ask(two, "POST", ENDPOINTS[0], two.weir.key, chat(model="shared-model"))[0] == 200
    _, _, _, request_id = two.post(chat(model="shared-model"), key=two.other_key)
    two.post(chat(model="shared-model"))
    assert not [row for row in two.rows(request_id) if row["tenant"] != "other"]
    rows = [row for row in two.weir.rows() if row["request_id"] == "same"]
    assert {row["tenant"] for row in rows} <= {"acme", "other"}
