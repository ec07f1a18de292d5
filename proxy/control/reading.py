"""Reads what a client says, strictly: each name once, no name that is not asked for, no value of another kind."""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from proxy import bounds
from proxy.control.nouns import Asked
from proxy.control.problems import Problem, invalid
from proxy.identity.claims import strict_json
from proxy.policy.patterns import plain

T = TypeVar("T", bound=Asked)
_AT = re.compile(r"^(?P<text>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MEDIA = re.compile(r'application/json(?:\s*;\s*charset\s*=\s*"?utf-8"?)?\s*', re.IGNORECASE)
_ETAG = re.compile(r'"([\x21\x23-\x7e]{1,128})"')


def body(raw: bytes, kind: type[T]) -> T:
    """The body of a request. Raises Problem 400 for what is no JSON, 422 with the path for what is not asked for."""
    try:
        said = strict_json(raw or b"{}")
    except ValueError as error:
        raise Problem(400, "malformed_json", f"The body is not one JSON object in UTF-8: {error}.") from None
    try:
        # Again by the stricter reader: of numbers and surrogates the first one takes more than there is.
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, said) from None
    except msgspec.DecodeError as error:
        raise Problem(400, "malformed_json", f"The body is not JSON: {error}.") from None


def query(text: str, kind: type[T] | None) -> T | None:
    """The query of a request, of raw bytes as the client sent it. Raises Problem 422."""
    if kind is None:
        if text:
            raise invalid("this operation takes no query", "$")
        return None
    if len(text) > bounds.CONTROL_QUERY_BYTES_MAX:
        raise Problem(414, "query_too_long", f"At most {bounds.CONTROL_QUERY_BYTES_MAX} bytes of query.")
    said: dict[str, str] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        try:
            word = unquote_to_bytes(name.replace("+", " ")).decode()
            if word in said:
                raise invalid(f"{word[:40]!r} stands twice", "$")
            said[word] = unquote_to_bytes(value.replace("+", " ")).decode()
        except UnicodeError:
            raise invalid("the query is not UTF-8", "$") from None
    try:
        return msgspec.convert(said, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error, said) from None


def _invalid(error: msgspec.ValidationError, said: dict[str, Any]) -> Problem:
    found = _AT.match(str(error))
    assert found is not None
    text, path = found["text"], found["path"] or "$"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
    if unknown:
        # Its own path, whether it is unknown to everybody or the server's to say.
        return invalid("unknown field, or one that is not the client's to say", f"{path}.{unknown[1][:64]}")
    return invalid(plain(text)[:300], path)


def media_type(value: str | None) -> None:
    """Raises Problem 415 unless a body says that it is JSON."""
    if value is None or not _MEDIA.fullmatch(value):
        raise Problem(415, "unsupported_media_type", "A body must be sent with content-type: application/json.")


def etag(value: str | None, name: str) -> str | None:
    """What stands in If-Match: one strong entity tag. Raises Problem 400 for another form."""
    if value is None:
        return None
    found = _ETAG.fullmatch(value.strip())
    if found is None:
        raise Problem(400, "bad_header", f"{name} must be one strong entity tag, as the answer's ETag has it.")
    return found[1]
