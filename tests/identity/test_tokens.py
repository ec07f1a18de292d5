"""A token opens exactly what its issuer may open: one good token, and beside it one that breaks each rule."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy import board, bounds
from proxy.errors import KINDS, Refusal
from proxy.identity.claims import subject_id
from tests.identity.forge import ISSUER, b64, claims, desk, issuer, jwk, key_set, private_key, signed, token

HEAD = {"alg": "RS256", "typ": "at+jwt", "kid": "rsa"}


def code_of(directory: Path, said: bytes, tenant: str | None = None, **policy: Any) -> str:
    """The code with which a fresh worker refuses this token, "" when it takes it."""

    async def story() -> str:
        async with desk(directory, issuer(**policy)) as made:
            first = await made.code(said, tenant)
            # From memory it must be the same, the second time for no cost.
            assert await made.code(said, tenant) == first
            return first

    return asyncio.run(story())


def now() -> int:
    """Seconds, as tokens have them."""
    return int(claims()["iat"])


@pytest.mark.parametrize(("key", "algorithm"), [("rsa", "RS256"), ("rsa", "PS256"), ("p256", "ES256"), ("ed", "EdDSA")])
def test_each_algorithm_of_the_policy(tmp_path: Path, key: str, algorithm: str) -> None:
    """A token that keeps every rule is taken, whatever of the policy's algorithms signed it."""
    assert code_of(tmp_path, token(key, algorithm)) == ""


def test_who_it_is(tmp_path: Path) -> None:
    """The principal has the issuer's tenant, a stable id of issuer and subject, and the token's time."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            ends = now() + 100
            first = (await made.identify(token(exp=ends))).principal
            again = (await made.identify(token(jti="another"))).principal
            other = (await made.identify(token(sub="u-2"))).principal
        assert first.tenant == "acme"
        assert first.key_id == again.key_id == subject_id("acme", ISSUER, "u-1")
        assert first.key_id != other.key_id
        assert first.key_id.startswith("jwt_")
        assert len(first.key_id) == 20
        assert (first.owner, first.user) == ("u-1", "u-1")
        assert first.expires_us == (ends + 30) * 1_000_000

    asyncio.run(story())


GOOD = {
    "audience in a list": lambda: token(aud=["other", "weir"]),
    "typ JWT": lambda: token(header={"typ": "JWT"}),
    "typ with its full name": lambda: token(header={"typ": "application/AT+JWT"}),
    "expired within the skew": lambda: token(exp=now() - 1),
    "begins within the skew": lambda: token(nbf=now() + 20, iat=now() + 20),
    "a time with a fraction": lambda: token(exp=now() + 60.5),
    "no iat": lambda: token(iat=None),
    "members nobody asked for": lambda: token(header={"jku": "https://evil.example", "x5u": "https://evil.example"}),
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_what_is_still_good(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """What the standards allow and the policy does not forbid is taken."""
    assert code_of(tmp_path, make()) == ""


BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "two parts": ("token_malformed", lambda: token().rpartition(b".")[0]),
    "four parts": ("token_malformed", lambda: token() + b".AA"),
    "no signature": ("token_malformed", lambda: token().rpartition(b".")[0] + b"."),
    "padding": ("token_malformed", lambda: token() + b"="),
    "white space": ("token_malformed", lambda: token().replace(b".", b". ", 1)),
    "standard base64": ("token_malformed", lambda: signed(HEAD, b'{"a":"\xc3\xbf\xc3\xbf?>"}').replace(b"_", b"/")),
    "bits to spare": ("token_malformed", lambda: _other_spelling(token())),
    "a header that is no JSON": ("token_malformed", lambda: signed(b"hello", claims())),
    "a header that is a list": ("token_malformed", lambda: signed(b"[]", claims())),
    "a payload that is no object": ("token_malformed", lambda: signed(HEAD, b'"sub"')),
    "a payload in UTF-16": ("token_malformed", lambda: signed(HEAD, json.dumps(claims()).encode("utf-16"))),
    "a payload with a byte order mark": ("token_malformed", lambda: signed(HEAD, b"\xef\xbb\xbf{}")),
    "NaN": ("token_malformed", lambda: signed(HEAD, b'{"exp":NaN}')),
    "nested without end": ("token_malformed", lambda: signed(HEAD, b'{"a":' + b"[" * 2500 + b"]" * 2500 + b"}")),
    "a claim twice": ("token_malformed", lambda: signed(HEAD, _doubled(claims(), "sub", "root"))),
    "a claim twice, deep": ("token_malformed", lambda: signed(HEAD, b'{"a":{"b":1,"b":2}}')),
    "alg twice": ("token_malformed", lambda: signed(_doubled(HEAD, "alg", "none"), claims())),
    "crit": ("token_malformed", lambda: token(header={"crit": ["b64"], "b64": True})),
    "crit, empty": ("token_malformed", lambda: token(header={"crit": []})),
    "a kid that is no text": ("token_malformed", lambda: token(header={"kid": 7})),
    "a kid without end": ("token_malformed", lambda: token(header={"kid": "k" * 257})),
    "another issuer": ("token_issuer", lambda: token(iss="https://login.example.org")),
    "the issuer with a slash": ("token_issuer", lambda: token(iss=ISSUER + "/")),
    "the issuer in capitals": ("token_issuer", lambda: token(iss=ISSUER.upper())),
    "no issuer": ("token_issuer", lambda: token(iss=None)),
    "issuers in a list": ("token_issuer", lambda: token(iss=[ISSUER])),
    "an algorithm that is not in the policy": ("token_algorithm", lambda: token(algorithm="RS512")),
    "no alg": ("token_algorithm", lambda: token(header={"alg": None})),
    "algs in a list": ("token_algorithm", lambda: token(header={"alg": ["RS256"]})),
    "an alg in small letters": ("token_algorithm", lambda: token(header={"alg": "rs256"})),
    "no typ": ("token_type", lambda: token(header={"typ": None})),
    "another typ": ("token_type", lambda: token(header={"typ": "logout+jwt"})),
    "a typ that is no text": ("token_type", lambda: token(header={"typ": 1})),
    "an unknown kid": ("token_key", lambda: token(header={"kid": "elsewhere"})),
    "a kid whose key has another algorithm": ("token_key", lambda: token("rsa", header={"kid": "p256"})),
    "no kid, and not the one key": ("token_signature", lambda: token("rsa-2", header={"kid": None})),
    "another's signature": ("token_signature", lambda: token("rsa-2", header={"kid": "rsa"})),
    "a payload changed afterwards": ("token_signature", lambda: _swapped(token(), claims(sub="root"))),
    "a header changed afterwards": ("token_signature", lambda: _reheaded(token(), {**HEAD, "x": 1})),
    "a signature cut short": ("token_signature", lambda: _shorter(token())),
    "no aud": ("token_claim", lambda: token(aud=None)),
    "an empty aud": ("token_claim", lambda: token(aud=[])),
    "an aud that is no text": ("token_claim", lambda: token(aud={"weir": True})),
    "a list with something else in it": ("token_claim", lambda: token(aud=["weir", 1])),
    "another aud": ("token_audience", lambda: token(aud="other")),
    "another aud in a list": ("token_audience", lambda: token(aud=["other", "weir-2"])),
    "an aud that begins alike": ("token_audience", lambda: token(aud="weir2")),
    "no exp": ("token_claim", lambda: token(exp=None)),
    "an exp that is text": ("token_claim", lambda: token(exp=str(now() + 60))),
    "an exp that is true": ("token_claim", lambda: token(exp=True)),
    "an exp that is null": ("token_claim", lambda: signed(HEAD, json.dumps({**claims(), "exp": None}).encode())),
    "an exp beyond time": ("token_claim", lambda: token(exp=1e300)),
    "an exp below time": ("token_claim", lambda: token(exp=-1)),
    "expired": ("token_expired", lambda: token(exp=now() - 31)),
    "not yet": ("token_not_yet_valid", lambda: token(nbf=now() + 3600)),
    "an nbf that is text": ("token_claim", lambda: token(nbf="now")),
    "issued tomorrow": ("token_not_yet_valid", lambda: token(iat=now() + 86_400)),
    "no sub": ("token_claim", lambda: token(sub=None)),
    "an empty sub": ("token_claim", lambda: token(sub="")),
    "a sub that is a number": ("token_claim", lambda: token(sub=1)),
    "a sub without end": ("token_claim", lambda: token(sub="u" * 256)),
    "a sub with a NUL": ("token_claim", lambda: token(sub="u\0root")),
    "a sub with half a letter": ("token_claim", lambda: token(sub="u\ud800")),
}


def _other_spelling(whole: bytes) -> bytes:
    """The same bytes with the spare bits of the last letter set: an RSA signature of 256 bytes leaves four."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return whole[:-1] + bytes([alphabet[alphabet.index(whole[-1]) + 1]])


def _shorter(whole: bytes) -> bytes:
    """The token with the last byte of its signature left out."""
    signed_part, _, signature = whole.rpartition(b".")
    raw = base64.urlsafe_b64decode(signature + b"==")
    return signed_part + b"." + b64(raw[:-1]).encode()


def _doubled(said: dict[str, Any], name: str, value: str) -> bytes:
    return json.dumps(said).encode()[:-1] + f', "{name}": "{value}"}}'.encode()


def _swapped(whole: bytes, payload: dict[str, Any]) -> bytes:
    header, _, signature = whole.split(b".")
    return b".".join((header, b64(json.dumps(payload).encode()).encode(), signature))


def _reheaded(whole: bytes, header: dict[str, Any]) -> bytes:
    return b".".join((b64(json.dumps(header).encode()).encode(), *whole.split(b".")[1:]))


@pytest.mark.parametrize(("code", "make"), BAD.values(), ids=BAD.keys())
def test_one_bad_token_for_each_rule(tmp_path: Path, code: str, make: Callable[[], bytes]) -> None:
    """A token that breaks one rule is refused with that rule's code, as often as it comes."""
    assert code_of(tmp_path, make()) == code
    assert KINDS[code].status == 401


def test_too_large(tmp_path: Path) -> None:
    """A token above the bound is refused unread, and one at the bound is read."""
    base = len(token(pad=""))
    most = token(pad="x" * ((bounds.TOKEN_BYTES_MAX - base) * 3 // 4))
    assert len(most) > bounds.TOKEN_BYTES_MAX - 8
    assert code_of(tmp_path, most) == ""
    assert code_of(tmp_path, most + b"A" * 9) == "token_too_large"


def test_types_by_policy(tmp_path: Path) -> None:
    """The policy says which types are taken: one alone, or none at all in the header."""
    assert code_of(tmp_path, token(header={"typ": "JWT"}), types=("at+jwt",)) == "token_type"
    assert code_of(tmp_path, token(), types=("JWT",)) == "token_type"
    assert code_of(tmp_path, token(header={"typ": None}), types=("absent",)) == ""
    assert code_of(tmp_path, token(header={"typ": "absent"}), types=("absent",)) == "token_type"


def test_without_a_name(tmp_path: Path) -> None:
    """A token without a kid is taken when only one published key fits, and is nobody's when several do."""

    async def story() -> None:
        both = {ISSUER: key_set(jwk("rsa"), jwk("rsa-2"), jwk("p256"))}
        async with desk(tmp_path, published=both) as made:
            assert await made.code(token("p256", "ES256", header={"kid": None})) == ""
            assert await made.code(token(header={"kid": None})) == "token_key"

    asyncio.run(story())


def test_a_refusal_says_nothing_of_the_token(tmp_path: Path) -> None:
    """The sentence names the rule, carries the challenge of RFC 6750, and repeats nothing that was sent."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            for said in (token(sub="secret-subject", aud="secret-audience"), token(iss="https://secret.example")):
                with pytest.raises(Refusal) as caught:
                    await made.identify(said)
                assert "secret" not in caught.value.message
                assert caught.value.headers == b'www-authenticate: Bearer error="invalid_token"\r\n'

    asyncio.run(story())


# === what is remembered ===


def test_a_verdict_is_kept_by_the_whole_token(tmp_path: Path) -> None:
    """A verified token is verified once; one that differs in its last letter alone is another one."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            said = token()
            known = await made.identify(said)
            assert await made.identify(said) is known
            assert made.looked_up == 1
            assert await made.code(_swapped(said, claims(sub="root"))) == "token_signature"
            assert await made.code(said[:-1] + (b"A" if said[-1:] != b"A" else b"Q")) != ""
            assert await made.identify(said) is known

    asyncio.run(story())


def test_a_verdict_ends_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remembered token is refused from the instant on at which its time and the skew are over."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            said = token()
            ends_us = (await made.identify(said)).principal.expires_us
            assert ends_us is not None
            monkeypatch.setattr("proxy.identity.tokens.wall_us", lambda: ends_us - 1)
            assert await made.code(said) == ""
            monkeypatch.setattr("proxy.identity.tokens.wall_us", lambda: ends_us)
            assert await made.code(said) == "token_expired"
            assert await made.code(said) == "token_expired"

    asyncio.run(story())


def test_a_verdict_ends_with_the_policy(tmp_path: Path) -> None:
    """A new policy judges anew: another audience refuses what was good, and without an issuer there are no tokens."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            said = token()
            first = await made.identify(said)
            made.tokens.adopt({"corp": issuer(source="config/weir.yaml:10")})  # a line was added above it
            assert await made.identify(said) is first
            made.tokens.adopt({"corp": issuer(audiences=("weir-2",))})
            assert await made.code(said) == "token_audience"
            made.tokens.adopt({})
            assert await made.code(said) == "invalid_api_key"
            assert made.told.gone == ["corp", "corp"]
            made.tokens.adopt({"corp": issuer()})
            assert await made.identify(said) is not first

    asyncio.run(story())


def test_a_verdict_ends_with_the_user(tmp_path: Path) -> None:
    """A disabled user is refused as soon as the key table's generation is raised, and taken again likewise."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            said = token()
            await made.identify(said)
            made.disabled.add((ISSUER, "u-1"))
            assert await made.code(said) == ""  # nobody has said that anything changed
            made.arena.raise_word(board.KEYS_GENERATION)
            assert await made.code(said) == "token_revoked"
            assert await made.code(token(jti="new")) == "token_revoked"
            assert await made.code(token(sub="u-2")) == ""
            made.disabled.clear()
            made.arena.raise_word(board.KEYS_GENERATION)
            assert await made.code(said) == ""

    asyncio.run(story())


def test_a_change_during_the_look_up_is_not_missed(tmp_path: Path) -> None:
    """A user who is disabled while being looked up is looked up again on the next request."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            truly = made.disabled_among

            async def late(identities: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
                said = await truly(identities)
                made.disabled.add((ISSUER, "u-1"))  # committed just after the answer was worked out
                made.arena.raise_word(board.KEYS_GENERATION)
                return said

            made.tokens._disabled_among = late
            said = token()
            assert await made.code(said) == ""
            assert await made.code(said) == "token_revoked"

    asyncio.run(story())


def test_the_database_is_away(tmp_path: Path) -> None:
    """A token that is known goes on while the database is away; another one is a 503 to retry."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            known = token()
            await made.identify(known)
            made.away = True
            assert await made.code(known) == ""
            assert await made.code(token(sub="u-2")) == "store_unavailable"
            assert KINDS["store_unavailable"].retry

    asyncio.run(story())


def test_known_tokens_are_renewed_after_a_change(tmp_path: Path) -> None:
    """One question renews all whose users may still call, with what was worked out for them; no request has to ask."""

    async def story() -> None:
        async with desk(tmp_path, issuer(tenants=("acme", "beta"))) as made:
            users = {name: token("ed", "EdDSA", sub=name) for name in ("u-1", "u-2", "u-3")}
            known = {name: await made.identify(said, "acme") for name, said in users.items()}
            await made.identify(users["u-1"], "beta")
            made.disabled.add((ISSUER, "u-2"))
            made.arena.raise_word(board.KEYS_GENERATION)
            made.looked_up = 0
            await made.tokens.renew()
            await made.tokens.renew()
            assert made.looked_up == 1
            made.away = True
            for name in ("u-1", "u-3"):
                assert await made.identify(users[name], "acme") is known[name]
            assert await made.code(users["u-1"], "beta") == ""
            # Of the disabled one nothing is known any more but that it must be asked about.
            assert await made.code(users["u-2"], "acme") == "store_unavailable"
            made.away = False
            assert await made.code(users["u-2"], "acme") == "token_revoked"

    asyncio.run(story())


def test_what_cannot_be_renewed_stays_stale(tmp_path: Path) -> None:
    """While the database is away after a change, no token is taken for good; it is tried again and then is."""

    async def story() -> None:
        async with desk(tmp_path) as made:
            said = token()
            await made.identify(said)
            made.arena.raise_word(board.KEYS_GENERATION)
            made.away = True
            await made.tokens.renew()
            assert await made.code(said) == "store_unavailable"
            made.away = False
            await made.tokens.renew()
            made.away = True
            assert await made.code(said) == ""

    asyncio.run(story())


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens come, good and bad, no more are kept than the bounds say; the newest are."""
    monkeypatch.setattr(bounds, "TOKENS_CACHED_MAX", 8)
    monkeypatch.setattr(bounds, "TOKENS_REFUSED_CACHED_MAX", 4)

    async def story() -> None:
        async with desk(tmp_path) as made:
            for number in range(30):
                last = token("ed", "EdDSA", jti=str(number))
                assert await made.code(last) == ""
                assert await made.code(_shorter(last)) == "token_signature"
            assert repr(made.tokens) == "[Tokens: 8 verified, 4 refused, [Issuers: corp]]"
            looked_up = made.looked_up
            assert await made.code(last) == ""
            assert made.looked_up == looked_up

    asyncio.run(story())


def test_keys_of_tests_are_as_strong_as_the_rule_asks() -> None:
    """The forge makes what the rules are about: an RSA key of 2048 bits."""
    assert private_key("rsa").key_size == bounds.RSA_BITS_MIN
