"""What has opened other gateways: each attack from the advisories is tried on this one and refused by its rule."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import jwt
import pytest

from proxy import bounds
from tests.identity.forge import (
    ISSUER,
    Json,
    b64,
    claims,
    desk,
    hmac_signed,
    issuer,
    jwk,
    key_set,
    pem,
    signed,
    token,
)

HEAD = {"alg": "RS256", "typ": "at+jwt", "kid": "rsa"}
OTHER = "https://login.other.example"


def code_of(directory: Path, said: bytes, published: Json | None = None) -> str:
    """The code with which a worker that trusts `issuer()` refuses this token, "" when it takes it."""

    async def story() -> str:
        async with desk(directory, published=None if published is None else {ISSUER: published}) as made:
            return await made.code(said)

    return asyncio.run(story())


SECRETS = {
    "the PEM": lambda: pem("rsa"),
    "the PEM without its last line end": lambda: pem("rsa").rstrip(),
    "the JWK": lambda: json.dumps(jwk("rsa")).encode(),
    "the modulus": lambda: jwk("rsa")["n"].encode(),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512", "RS256"])
def test_the_public_key_as_a_shared_secret(tmp_path: Path, algorithm: str, secret: object) -> None:
    """An HMAC made with the published key proves nothing, under its own name or an asymmetric one (CVE-2022-29217)."""
    assert callable(secret)
    said = hmac_signed({**HEAD, "alg": algorithm}, claims(sub="root"), secret())
    assert code_of(tmp_path, said) == ("token_signature" if algorithm == "RS256" else "token_algorithm")


def test_a_symmetric_key_in_the_set(tmp_path: Path) -> None:
    """A key set with a shared secret in it does not make shared secrets count (CVE-2026-48526)."""
    secret = b"s" * 32
    published = key_set(jwk("rsa"), {"kty": "oct", "kid": "shared", "k": b64(secret)})
    for algorithm, code in (("HS256", "token_algorithm"), ("RS256", "token_key")):
        said = hmac_signed({**HEAD, "alg": algorithm, "kid": "shared"}, claims(), secret)
        assert code_of(tmp_path, said, published) == code


@pytest.mark.parametrize("word", ["none", "None", "NONE", "nOnE", ""])
def test_no_signature_at_all(tmp_path: Path, word: str) -> None:
    """`none` is no algorithm, in whatever letters, with an empty signature or with any."""
    unsigned = ".".join(b64(json.dumps(part).encode()) for part in ({**HEAD, "alg": word}, claims())).encode()
    assert code_of(tmp_path, unsigned + b".") == "token_malformed"
    assert code_of(tmp_path, unsigned + b".AA") == "token_algorithm"


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/dev/null",
        "file:///etc/passwd",
        "https://evil.example/jwks.json",
        "rsa' OR '1'='1",
        "rsa\0",
        "rsa\n",
        "RSA",
        "rsa ",
        "${jndi:ldap://evil.example}",
        "__class__",
    ],
)
def test_a_key_name_is_only_a_name(tmp_path: Path, kid: str) -> None:
    """A kid is looked up among the published names and is nothing else: no path, no address, no pattern."""
    assert code_of(tmp_path, token("rsa-2", header={"kid": kid})) == "token_key"
    assert code_of(tmp_path, hmac_signed({**HEAD, "alg": "RS256", "kid": kid}, claims(), b"")) == "token_key"


def test_a_key_that_the_token_brings(tmp_path: Path) -> None:
    """A token signed by a key in its own header, or at an address in it, is as good as unsigned."""
    for brought in (
        {"jwk": jwk("rsa-2")},
        {"jku": "http://127.0.0.1:1/jwks", "kid": "rsa-2"},
        {"x5u": "http://127.0.0.1:1/cert", "x5c": ["AAAA"]},
    ):
        code = code_of(tmp_path, token("rsa-2", header={"kid": "rsa", **brought}))
        assert code == ("token_key" if "kid" in brought else "token_signature")


def test_each_issuer_speaks_for_its_own(tmp_path: Path) -> None:
    """A's issuer cannot speak for B: not with B's name, not in a claim, not in the header, not under B's issuer."""

    async def story() -> None:
        ours = issuer(tenant_claim="org")
        theirs = issuer(name="other", issuer=OTHER, tenants=("other",), tenant_claim="org")
        published = {ISSUER: key_set(jwk("rsa")), OTHER: key_set(jwk("rsa-2", kid="rsa"))}
        async with desk(tmp_path, ours, theirs, published=published) as made:
            assert (await made.identify(token(org="acme"))).principal.tenant == "acme"
            assert await made.code(token(org="other")) == "tenant_mismatch"
            assert await made.code(token(org="acme"), "other") == "tenant_mismatch"
            assert await made.code(token(org=["other", "*", "acme "])) == "tenant_mismatch"
            both = (await made.identify(token(org=["other", "acme"]))).principal
            assert both.tenant == "acme"
            # The right key under the wrong name, and the wrong key under the right one.
            assert await made.code(token(iss=OTHER, org="other")) == "token_signature"
            assert await made.code(token("rsa-2", iss=OTHER, org="other", header={"kid": "rsa"})) == ""
            assert await made.code(token("rsa-2", org="acme", header={"kid": "rsa"})) == "token_signature"
            assert await made.code(token("rsa-2", iss=OTHER, org="acme", header={"kid": "rsa"})) == "tenant_mismatch"

    asyncio.run(story())


def test_the_same_subject_of_two_issuers(tmp_path: Path) -> None:
    """The same `sub` at two issuers of one tenant is two users: an identity is issuer and subject together."""

    async def story() -> None:
        second = issuer(name="other", issuer=OTHER)
        async with desk(
            tmp_path, issuer(), second, published={iss: key_set(jwk("rsa")) for iss in (ISSUER, OTHER)}
        ) as d:
            one = (await d.identify(token(email="boss@example.com"))).principal
            two = (await d.identify(token(iss=OTHER, email="boss@example.com"))).principal
            assert one.tenant == two.tenant == "acme"
            assert one.key_id != two.key_id
            d.disabled.add((OTHER, "u-1"))
            assert await d.code(token(iss=OTHER, jti="2")) == "token_revoked"
            assert await d.code(token(jti="2")) == ""

    asyncio.run(story())


def test_tokens_that_begin_alike(tmp_path: Path) -> None:
    """Tokens with one header and almost one payload are different tokens: nobody gets another's (CVE-2026-35030)."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            said = [token(pad="x" * 600, sub=f"u-{number}") for number in range(50)]
            assert len({each[:20] for each in said}) == 1
            for _ in range(2):
                for number, each in enumerate(said):
                    assert (await made.identify(each)).principal.user == f"u-{number}"

    asyncio.run(story())


def test_an_encrypted_token(tmp_path: Path) -> None:
    """A JWE proves nobody's word: whoever has the public key can make one."""
    parts = [{"alg": "dir", "enc": "A128GCM", "typ": "at+jwt", "kid": "rsa"}, "", "iv", claims(), "tag"]
    said = ".".join(b64(json.dumps(part).encode()) for part in parts).encode()
    assert code_of(tmp_path, said) == "token_malformed"
    assert code_of(tmp_path, said.replace(b".", b"..", 1)) == "token_malformed"


def test_a_token_inside_a_token(tmp_path: Path) -> None:
    """A signed token around another one is read as what it is: no claims."""
    assert code_of(tmp_path, signed({**HEAD, "cty": "JWT"}, token())) == "token_malformed"


def test_an_unencoded_payload(tmp_path: Path) -> None:
    """RFC 7797's `b64: false`, announced or not, changes nothing of how a payload is read (CVE-2026-32597)."""
    assert code_of(tmp_path, token(header={"b64": False, "crit": ["b64"]})) == "token_malformed"
    assert code_of(tmp_path, token(header={"b64": False})) == "token_signature"


def test_a_signature_of_the_wrong_form(tmp_path: Path) -> None:
    """ECDSA signatures as DER, as zeroes, and with a curve of another key are refused, and nothing breaks."""
    text, _, good = token("p256", "ES256").rpartition(b".")
    for raw in (b"\0" * 64, b"\x30\x06\x02\x01\x01\x02\x01\x01", b"\xff" * 64, b"\0" * 63, b"\x01"):
        assert code_of(tmp_path, text + b"." + b64(raw).encode()) == "token_signature"
    der = jwt.utils.raw_to_der_signature(jwt.utils.base64url_decode(good), _curve())
    assert code_of(tmp_path, text + b"." + b64(der).encode()) == "token_signature"
    assert code_of(tmp_path, token("p384", "ES384", header={"alg": "ES256", "kid": "p256"})) == "token_signature"


def _curve() -> object:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.SECP256R1()


UNFIT = {
    "for encryption": jwk("rsa", use="enc"),
    "for other operations": jwk("rsa", use=None, key_ops=["sign", "encrypt"]),
    "with operations that are no list": jwk("rsa", use=None, key_ops="verify"),
    "for another algorithm": jwk("rsa", alg="PS256"),
    "for an algorithm nobody has": jwk("rsa", alg="RSA-OAEP"),
    "too short": jwk("rsa1024", kid="rsa"),
    "of another type": jwk("p256", kid="rsa"),
    "with its private part": {**jwk("rsa"), "d": "AQAB"},
    "with half of it gone": jwk("rsa", n=None),
    "with an even exponent": jwk("rsa", e="AA"),
    "with a modulus that is no text": jwk("rsa", n=5),
}


@pytest.mark.parametrize("published", UNFIT.values(), ids=UNFIT.keys())
def test_a_key_that_must_not_prove_this(tmp_path: Path, published: Json) -> None:
    """A published key that is not for this proves nothing, though its signature would be right."""
    key = "rsa1024" if published.get("n") == jwk("rsa1024")["n"] else "rsa"
    said = signed(HEAD, claims(), key)
    assert code_of(tmp_path, said, key_set(published, jwk("p256"))) == "token_key"


def test_two_keys_of_one_name(tmp_path: Path) -> None:
    """Of two keys with one name for one algorithm neither counts: which is meant would be a guess."""
    assert code_of(tmp_path, token(), key_set(jwk("rsa"), jwk("rsa-2", kid="rsa"), jwk("p256"))) == "token_key"
    # For two algorithms there is nothing to guess.
    assert code_of(tmp_path, token(), key_set(jwk("rsa", alg="RS256"), jwk("rsa-2", kid="rsa", alg="PS256"))) == ""


def test_no_other_bytes_are_taken(tmp_path: Path) -> None:
    """Two thousand changed copies of good tokens are all refused, each by a refusal and never by a fault."""
    seed = int(os.environ.get("WEIR_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)

    async def story() -> None:
        async with desk(tmp_path) as made:
            good = [token(), token("p256", "ES256"), token("ed", "EdDSA")]
            for each in good:
                assert await made.code(each) == ""
            for number in range(2000):
                said = bytearray(draw.choice(good))
                for _ in range(draw.choice((1, 1, 1, 2, 5))):
                    at = draw.randrange(len(said))
                    match draw.randrange(4):
                        case 0:
                            said[at] = draw.randrange(0x21, 0x7F)
                        case 1:
                            del said[at : at + draw.choice((1, 3, 4, 40))]
                        case 2:
                            said[at:at] = draw.choice(good)[: draw.randrange(60)]
                        case _:
                            said[at], said[-1] = said[-1], said[at]
                if bytes(said) not in good:
                    code = await made.code(bytes(said))
                    assert code.startswith("token_") or code == "issuer_unavailable", (seed, number, code, bytes(said))

    asyncio.run(story())


def test_a_large_flood_of_names_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens with ever new key names cost one fetch a minute and a bounded memory, whatever they are answered."""
    monkeypatch.setattr(bounds, "JWKS_KIDS_ABSENT_MAX", 4)

    async def story() -> None:
        async with desk(tmp_path) as made:
            codes = {await made.code(token("ed", "EdDSA", header={"kid": f"k{number}"})) for number in range(50)}
            assert codes == {"token_key", "issuer_unavailable"}
            assert made.fetched == ["corp", "corp"]
            assert len(made.issuers.of(ISSUER)._absent) <= 4  # type: ignore[union-attr]
            assert await made.code(token()) == ""

    asyncio.run(story())
