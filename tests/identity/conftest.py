"""One Weir behind a proxy that it trusts, for what depends on whose call it is and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.identity.forge import ISSUER, jwk, key_set
from tests.journey.conftest import House
from tests.world.gateway import Gateway
from tests.world.process import UpstreamProcess

DOMAIN = "weir.example.com"
FAILURES = 2  # bad credentials from one address in a minute
LONGEST = "t" * 48  # the longest name of a tenant
SLOW = {"requests_per_minute": 2}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Two workers. Whoever connects is a trusted proxy, so that a test can be at any address by X-Forwarded-For."""
    directory: Path = tmp_path_factory.mktemp("world")
    with UpstreamProcess(directory / "ledger.jsonl") as upstream:
        jwks = directory / "corp.jwks.json"
        jwks.write_text(json.dumps(key_set(jwk("rsa"))))
        secret = {"key": "file:" + str(directory / "config" / "upstream.key")}
        settings: dict[str, Any] = {
            "listen": {"trusted_proxies": ["127.0.0.0/8"], "tenant_domain": DOMAIN, "failures_per_minute": FAILURES},
            "upstreams": {"told": {"url": upstream.url, "tenant_header": "X-Tenant", **secret}},
            "models": {
                "told-model": {"upstream": "told", "unpriced": True},
                "priced": {"upstream": "mock"},
                "m" * 96: {"upstream": "mock"},
            },
            "issuers": {
                "corp": {
                    "issuer": ISSUER,
                    "tenants": ["acme", "other"],
                    "audiences": ["weir"],
                    "keys": f"file:{jwks}",
                }
            },
        }
        weir = Gateway(directory, upstream.url, workers=2, settings=settings)
        plans = {"all": {}, "slow": {"limits": SLOW}, "embeddings-only": {"endpoints": ["embeddings"]}}
        weir.write("plans.yaml", {"plans": plans})
        price = {"prompt": "999999.999999999", "cached": "999999.999999999", "completion": "999999.999999999"}
        weir.write("prices.yaml", {"version": "p" * 32, "models": {"m" * 96: price, "priced": price}})
        weir.write("tenants/other.yaml", {"name": "other", "plan": "all"})
        weir.write("tenants/narrow.yaml", {"name": "narrow", "plan": "all", "key_limits": {"requests_per_minute": 2}})
        weir.write(f"tenants/{LONGEST}.yaml", {"name": LONGEST, "plan": "all", "tag_header": "X-" + "H" * 30})
        with weir:
            yield House(weir, upstream)
            weir.assert_at_rest()
