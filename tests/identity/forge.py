"""Keys, key sets and tokens made by the tests themselves: good ones, and ones that break exactly one rule."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from proxy._fastpath import Arena
from proxy.clock import boot_id, wall_us
from proxy.errors import Refusal
from proxy.identity.issuers import Issuers
from proxy.identity.keys import Known
from proxy.identity.shelf import Shelf
from proxy.identity.tokens import Tokens
from proxy.policy.snapshot import Issuer

ISSUER = "https://login.example.com"
Json = dict[str, Any]


@cache
def private_key(name: str) -> Any:
    """The private key of that name, the same all through the run: its kind is the name's first word."""
    kind = name.split("-")[0]
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("rsa") or 2048))
    if kind == "ed":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}[kind]())


def pem(name: str) -> bytes:
    """The public half as a certificate tool would print it."""
    return bytes(
        private_key(name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def jwk(name: str, **more: Any) -> Json:
    """The public half as its issuer publishes it; None as a value leaves a member out."""
    kind = name.split("-")[0]
    makers = {"rsa": jwt.algorithms.RSAAlgorithm, "ed": jwt.algorithms.OKPAlgorithm}
    maker: Any = makers.get(kind.rstrip("0123456789"), jwt.algorithms.ECAlgorithm)
    said = json.loads(maker.to_jwk(private_key(name).public_key()))
    said.pop("key_ops", None)
    said |= {"kid": name, "use": "sig", **more}
    return {key: value for key, value in said.items() if value is not None}


def key_set(*keys: Json) -> Json:
    """The document at a jwks_uri."""
    return {"keys": list(keys)}


def b64(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**more: Any) -> Json:
    """Claims of a good token for the issuer of `issuer()`; None as a value leaves one out."""
    now = wall_us() // 1_000_000
    said = {"iss": ISSUER, "aud": "weir", "sub": "u-1", "iat": now, "exp": now + 300, **more}
    return {name: value for name, value in said.items() if value is not None}


def signed(header: Json | bytes, payload: Json | bytes, key: str = "rsa", algorithm: str = "RS256") -> bytes:
    """A token over exactly this header and payload, signed by the key of that name as `algorithm` says."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    text = ".".join(map(b64, parts)).encode()
    maker = jwt.get_algorithm_by_name(algorithm)
    return text + b"." + b64(maker.sign(text, private_key(key))).encode()


def hmac_signed(header: Json, payload: Json, secret: bytes) -> bytes:
    """A token whose signature is an HMAC-SHA-256: what a confused verifier would take a public key for."""
    text = ".".join(b64(json.dumps(part).encode()) for part in (header, payload)).encode()
    return text + b"." + b64(hmac.digest(secret, text, hashlib.sha256)).encode()


def token(key: str = "rsa", algorithm: str = "RS256", header: Json | None = None, **more: Any) -> bytes:
    """A good token but for what is said: `header` is laid over its header, everything else over its claims."""
    head = {"alg": algorithm, "typ": "at+jwt", "kid": key, **(header or {})}
    return signed({name: value for name, value in head.items() if value is not None}, claims(**more), key, algorithm)


def issuer(**more: Any) -> Issuer:
    """One issuer of the policy, for the tenant acme."""
    fields: Json = {
        "name": "corp",
        "source": "config/weir.yaml:9",
        "issuer": ISSUER,
        "tenants": ("acme",),
        "audiences": ("weir",),
        "algorithms": ("RS256", "PS256", "ES256", "EdDSA"),
        "types": ("at+jwt", "JWT"),
        "keys": None,
        "ca_bundle": None,
        "http_loopback": True,
        "skew_seconds": 30,
        "refresh_seconds": 300,
        "stale_seconds": 3600,
        "user_claim": "sub",
        "tenant_claim": None,
        "groups_claim": "groups",
        "roles_claim": "roles",
        "tag_claims": (),
        "email_domains": (),
        "endpoints": None,
        "groups": {},
        "roles": {},
        **more,
    }
    return Issuer(**fields)


class Told:
    """What was counted."""

    def __init__(self) -> None:
        self.refreshes: list[tuple[str, bool]] = []
        self.overages: list[str] = []
        self.gone: list[str] = []

    def refreshed(self, issuer: str, good: bool) -> None:
        self.refreshes.append((issuer, good))

    def retired(self, issuer: str) -> None:
        self.gone.append(issuer)

    def groups_left_out(self, issuer: str) -> None:
        self.overages.append(issuer)


class Desk:
    """Tokens over issuers whose key sets are in the test's hand. `published[iss]` is a document or an exception."""

    def __init__(self, arena: Arena, published: dict[str, Any], shelf: Shelf | None = None) -> None:
        self.arena = arena
        self.published = published
        self.fetched: list[str] = []
        self.gate: asyncio.Event | None = None  # while there is one that is not set, fetches wait
        self.disabled: set[tuple[str, str]] = set()
        self.looked_up = 0
        self.told = Told()
        self.issuers = Issuers(self.told, self.fetch, shelf)
        self.away = False  # the database
        self.tokens = Tokens(arena, self.issuers, self.disabled_among)

    async def fetch(self, issuer: Issuer) -> Json:
        self.fetched.append(issuer.name)
        said = self.published[issuer.issuer]  # as published when it was asked, however long the answer takes
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(said, Exception):
            raise said
        return dict(said)

    async def disabled_among(self, identities: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        if self.away:
            raise OSError("away")
        self.looked_up += 1
        return self.disabled & set(identities)

    async def identify(self, token: bytes, tenant: str | None = None) -> Known:
        """As the journey does it: from memory, or else looked up."""
        from proxy.clock import now_ns

        asked = None if tenant is None else tenant.encode()
        return self.tokens.known(token, asked, now_ns()) or await self.tokens.look_up(token, asked)

    async def code(self, token: bytes, tenant: str | None = None) -> str:
        """The refusal's code, "" when the token is taken."""
        try:
            await self.identify(token, tenant)
        except Refusal as refusal:
            return refusal.code
        return ""


@asynccontextmanager
async def desk(
    directory: Path, *issuers: Issuer, published: Mapping[str, Any] | None = None, shelf: Shelf | None = None
) -> AsyncIterator[Desk]:
    """A desk with these issuers, the one of `issuer()` without any; every task has ended with the block."""
    arena = Arena(str(directory / "arena"), boot_id(), 0)
    made = Desk(arena, dict(published or {ISSUER: key_set(jwk("rsa"), jwk("p256"), jwk("ed"))}), shelf)
    try:
        made.tokens.adopt({each.name: each for each in issuers or (issuer(),)})
        yield made
    finally:
        await made.issuers.close()
        arena.close()
        left = [task for task in asyncio.all_tasks() if "KeySet" in repr(task)]
        assert not left, left
