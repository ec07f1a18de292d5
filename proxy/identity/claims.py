"""What a token says: read strictly, and judged by its issuer's policy. Pure: it is told the time.

RFC 7515 and 7519 leave room in which two readers of one token may read two things. Here a token has one reading or
none: no doubled member, no second spelling of base64, no text that is not UTF-8, no number that is not one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from hashlib import blake2b
from typing import Any, NamedTuple

from msgspec import Struct

from proxy import bounds
from proxy.call import Principal
from proxy.errors import Refusal
from proxy.policy.snapshot import Issuer
from proxy.record import cut

_FORM = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
CHALLENGE = b'www-authenticate: Bearer error="invalid_token"\r\n'  # RFC 6750, section 3
_SECOND_US = 1_000_000
_ID_BYTES = 10  # of a subject's id: nobody finds a second subject of one id, and it is as long as a key's

Json = dict[str, Any]


class Parts(NamedTuple):
    """A token taken apart, and not yet believed. `payload` is what the claims were read from."""

    header: Json
    claims: Json
    payload: bytes


class Person(Struct, frozen=True):
    """Whom a verified token stands for. `tenants` are those it may choose among; times are wall clock."""

    issuer: str
    subject: str
    user: str
    tenants: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]
    endpoints: tuple[str, ...] | None
    models: tuple[str, ...] | None
    expires_us: int  # skew included
    groups_left_out: bool  # the issuer had more groups than a token holds, and sent none

    @property
    def identity(self) -> tuple[str, str]:
        """Issuer and subject: together they are one user, apart they are nobody."""
        return self.issuer, self.subject

    def principal(self, tenant: str) -> Principal:
        """The caller, in one of its tenants."""
        return Principal(
            tenant=tenant,
            key_id=subject_id(tenant, self.issuer, self.subject),
            owner=self.user,
            tags=self.tags,
            endpoints=self.endpoints,
            models=self.models,
            expires_us=self.expires_us,
            user=self.user,
        )


def refusal(code: str, detail: str = "", *, retry_after_ms: int = 0) -> Refusal:
    """A refusal of a token, with the challenge that RFC 6750 asks for."""
    return Refusal(code, detail, retry_after_ms=retry_after_ms, headers=CHALLENGE)


def subject_id(tenant: str, issuer: str, subject: str) -> str:
    """The id of a subject in a tenant's rows and limits: stable, safe to log, and telling nothing of the subject.

    Another tenant has another id for the same subject: limits and rows of one are no matter of the other's.
    """
    digest = blake2b("\0".join((tenant, issuer, subject)).encode(), digest_size=_ID_BYTES).digest()
    return f"jwt_{base64.b32encode(digest).decode('ascii').lower()}"


# === reading ===


def read(token: bytes) -> Parts:
    """Takes a token apart. Raises Refusal token_too_large or token_malformed."""
    if len(token) > bounds.TOKEN_BYTES_MAX:
        raise refusal("token_too_large", str(bounds.TOKEN_BYTES_MAX))
    if _FORM.fullmatch(token) is None:
        # Five parts are an encrypted token (RFC 7516): it proves nobody's word without a signature inside.
        raise refusal("token_malformed", "it does not have three parts of base64url")
    header, payload, signature = token.split(b".")
    _decoded(signature)
    raw = _decoded(payload)
    return Parts(_object(_decoded(header), "header"), _object(raw, "payload"), raw)


def _decoded(part: bytes) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        raise refusal("token_malformed", "a part of it is not base64url") from None
    # The last letter has bits to spare. With them set, one signature would have several spellings.
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part:
        raise refusal("token_malformed", "a part of it is not base64url in its one right spelling")
    return raw


def _object(raw: bytes, what: str) -> Json:
    try:
        said = strict_json(raw)
    except ValueError:
        raise refusal("token_malformed", f"its {what} is not a JSON object with each name once") from None
    return said


def strict_json(raw: bytes) -> Json:
    """A JSON object in UTF-8 whose names are unique at every depth. Raises ValueError."""
    try:
        said = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(said, dict):
        raise ValueError("not an object")
    return said


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


# === the header ===


def algorithm(header: Json, issuer: Issuer) -> tuple[str, str | None]:
    """(algorithm, the key's name or None) of a header that this issuer's tokens may have. Raises Refusal.

    The algorithm is one of the policy's list, or the token is refused: the header chooses from the list and adds
    nothing to it. Keys that a header brings along (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
    """
    named = header.get("alg")
    if not isinstance(named, str) or named not in issuer.algorithms:
        raise refusal("token_algorithm")
    if "crit" in header:  # RFC 7515, 4.1.11: what must be understood and is not; nothing is understood here
        raise refusal("token_malformed", "its header has critical extensions, and Weir knows none")
    kind = header.get("typ")
    if kind is None:
        known = "absent" in issuer.types
    else:
        # RFC 7515, 4.1.9: a media type, compared without case; `application/` may be left out.
        word = kind.lower().removeprefix("application/") if isinstance(kind, str) else ""
        known = any(word == each.lower() for each in issuer.types if each != "absent")
    if not known:
        raise refusal("token_type")
    kid = header.get("kid")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= bounds.TOKEN_KID_BYTES_MAX):
        raise refusal("token_malformed", "its header's kid is not a name")
    return named, kid


# === the claims ===


def person(claims: Json, issuer: Issuer, now_us: int) -> Person:
    """Whom the claims of a verified token stand for. Raises Refusal."""
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not named or not all(isinstance(each, str) for each in named):
        raise refusal("token_claim", "aud")
    if not any(each in issuer.audiences for each in named):
        raise refusal("token_audience")
    expires_us = _times(claims, issuer, now_us)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject or not _storable(subject):
        raise refusal("token_claim", "sub")
    verified = claims.get("email_verified") is True
    if issuer.email_domains and not (verified and _domain(claims.get("email")) in issuer.email_domains):
        raise Refusal("email_not_allowed")
    groups, roles, left_out = _memberships(claims, issuer)
    return Person(
        issuer=issuer.issuer,
        subject=subject,
        user=_user(claims, issuer, subject, verified),
        tenants=_tenants(claims, issuer),
        tags=_tags(claims, issuer),
        endpoints=issuer.endpoints,
        models=_models(groups, roles, issuer),
        expires_us=expires_us,
        groups_left_out=left_out,
    )


def _times(claims: Json, issuer: Issuer, now_us: int) -> int:
    """When the token ends, the skew included. Raises Refusal for one that has ended or not begun."""
    skew_us = issuer.skew_seconds * _SECOND_US
    expires_us = _instant(claims, "exp")
    if expires_us is None:
        raise refusal("token_claim", "exp")
    if now_us >= expires_us + skew_us:
        raise refusal("token_expired")
    for name in ("nbf", "iat"):
        begins_us = _instant(claims, name)
        if begins_us is not None and begins_us > now_us + skew_us:
            raise refusal("token_not_yet_valid")
    return expires_us + skew_us


def _instant(claims: Json, name: str) -> int | None:
    """A NumericDate (RFC 7519, section 2) in microseconds, or None without one."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal("token_claim", name)
    if not 0 <= value <= bounds.TOKEN_TIME_SECONDS_MAX:
        raise refusal("token_claim", name)
    return int(value * _SECOND_US)


def _storable(text: str) -> bool:
    """Whether a database takes the text, whole: no lone surrogate, no NUL, not too long."""
    try:
        return len(text.encode()) <= bounds.SUBJECT_BYTES_MAX and "\0" not in text
    except UnicodeEncodeError:
        return False


def _domain(address: object) -> str:
    if not isinstance(address, str) or address.count("@") != 1:
        return ""
    name, _, domain = address.partition("@")
    return domain.lower() if name and domain.isascii() else ""


def _at(claims: Json, path: str) -> Any:
    """The claim at a dotted path; None without one. A name with `://` in it is an address, and its dots are its own."""
    if "://" in path:
        return claims.get(path)
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _names(value: object) -> tuple[str, ...]:
    """A list of names, or names with spaces between; nothing for anything else."""
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    return ()


def _memberships(claims: Json, issuer: Issuer) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Groups, roles, and whether the issuer left groups out.

    A provider with more groups than a token holds sends a pointer in their place (OpenID Connect Core, 5.6.2). Weir
    does not follow it, and takes no part of the groups for the whole.
    """
    elsewhere = claims.get("_claim_names")
    moved = set(elsewhere) if isinstance(elsewhere, dict) else set()
    roles_moved = issuer.roles_claim in moved or issuer.roles_claim.split(".")[0] in moved
    left_out = "_claim_names" in claims or bool(claims.get("hasgroups"))
    groups = () if left_out else _names(_at(claims, issuer.groups_claim))
    roles = () if roles_moved else _names(_at(claims, issuer.roles_claim))
    return groups, roles, left_out


def _models(groups: tuple[str, ...], roles: tuple[str, ...], issuer: Issuer) -> tuple[str, ...] | None:
    """What the token's groups and roles open together. None: nothing is narrowed; (): nothing is open."""
    if not issuer.groups and not issuer.roles:
        return None
    opened: set[str] = set()
    for mine, entries in ((groups, issuer.groups), (roles, issuer.roles)):
        for name in mine:
            if name not in entries:
                continue
            models = entries[name]
            if models is None:
                return None
            opened.update(models)
    return tuple(sorted(opened))


def _tenants(claims: Json, issuer: Issuer) -> tuple[str, ...]:
    """The tenants the token may speak for: those its issuer is pinned to and, where a claim says so, it names."""
    if issuer.tenant_claim is None:
        return issuer.tenants
    value = _at(claims, issuer.tenant_claim)
    named = (value,) if isinstance(value, str) else _names(value)
    if not named:
        raise refusal("token_claim", issuer.tenant_claim)
    found = tuple(each for each in issuer.tenants if each in named)
    if not found:
        raise Refusal("tenant_mismatch")
    return found


def _user(claims: Json, issuer: Issuer, subject: str, verified: bool) -> str:
    """The name in the rows. An address that nobody has verified is anybody's: then it is the subject."""
    value = _at(claims, issuer.user_claim)
    if not isinstance(value, str) or not value or (issuer.user_claim == "email" and not verified):
        value = subject
    return cut(value, bounds.USER_BYTES_MAX)


def _tags(claims: Json, issuer: Issuer) -> tuple[tuple[str, str], ...]:
    """The claims that are kept as tags. What would not fit a row is left out, the later ones first."""
    tags = []
    room = bounds.TAGS_BYTES_MAX
    for path in issuer.tag_claims:
        value = _at(claims, path)
        if isinstance(value, bool) or not isinstance(value, str | int):
            continue
        text = cut(str(value), bounds.TAG_BYTES_MAX)
        room -= len(path) + len(text.encode())
        if room < 0:
            break
        tags.append((path, text))
    return tuple(tags)
