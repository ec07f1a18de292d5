"""The rows of the audit log and the chain through them. Pure.

A row's hash is SHA-256 over all of the row: its place, its fields, and the hash of the row before, each with a tag
and its length, so that no two different rows are one and the same text. The first row stands on GENESIS. Whoever
changes, removes, inserts or moves a row breaks the chain there; whoever recomputes it all from there on ends with
another last hash than the signed anchors hold (`proxy.audit.anchor`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from proxy import bounds

GENESIS = bytes(32)
_DOMAIN = b"weir.audit.row.1\0"
# Words of which none may be the name of a recorded value: what opens a door is never written down.
SECRETS = frozenset({"secret", "password", "token", "digest", "key", "pepper", "credential", "authorization"})

Outcome = Literal["ok", "refused"]


class Record(Struct, frozen=True):
    """What happened, as a writer tells it. `tenant` None is the platform; `before` and `after` are canonical JSON.

    Texts are at most AUDIT_TEXT_BYTES_MAX bytes of UTF-8 without NUL: `clean` makes any text one.
    """

    actor_kind: str
    actor_id: str
    actor_role: str  # "" where it acts by rights or claims
    actor_tenant: str | None
    origin: str  # an address, or `cli`
    action: str
    tenant: str | None
    target: str
    before: str | None
    after: str | None
    outcome: Outcome
    reason: str  # why it was refused, or what the actor gave as the reason


class Entry(Struct, frozen=True, kw_only=True):
    """One row: its place (1, 2, …), its time (wall clock), what happened, and its links in the chain."""

    seq: int
    at_us: int
    actor_kind: str
    actor_id: str
    actor_role: str
    actor_tenant: str | None
    origin: str
    action: str
    tenant: str | None
    target: str
    before: str | None
    after: str | None
    outcome: str
    reason: str
    previous: bytes  # 32 bytes
    hash: bytes  # 32 bytes


FIELDS: tuple[str, ...] = Entry.__struct_fields__


class NotRecordable(ValueError):
    """A change cannot be put on record as it stands, and so may not happen."""


def canonical(value: Mapping[str, Any] | None) -> str | None:
    """JSON with sorted names, no spaces, ASCII alone. Raises NotRecordable for secrets' names and for length."""
    if value is None:
        return None
    found = _secret_in(value)
    if found is not None:
        raise NotRecordable(f"{found!r} is the name of a secret: it does not go on record")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > bounds.AUDIT_JSON_BYTES_MAX:
        raise NotRecordable(f"{len(text)} bytes to put on record: at most {bounds.AUDIT_JSON_BYTES_MAX}")
    return text


def _secret_in(value: object) -> str | None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            # `tags` are the operator's own names; what is called a token there is a word for people.
            if name in SECRETS:
                return str(name)
            found = None if name == "tags" else _secret_in(inner)
            if found is not None:
                return found
    elif isinstance(value, list | tuple):
        for inner in value:
            found = _secret_in(inner)
            if found is not None:
                return found
    return None


def clean(text: str) -> str:
    """The text as every database can hold it: valid UTF-8, no NUL, cut to its bound."""
    data = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    return data[: bounds.AUDIT_TEXT_BYTES_MAX].decode("utf-8", "ignore")


def follow(record: Record, seq: int, at_us: int, previous: bytes) -> Entry:
    """The record as row `seq`, after the row whose hash is `previous`."""
    values = dict(zip(Record.__struct_fields__, astuple(record), strict=True))
    entry = Entry(seq=seq, at_us=at_us, previous=previous, hash=b"", **values)
    return msgspec.structs.replace(entry, hash=hash_of(entry))


def hash_of(entry: Entry) -> bytes:
    """The hash that belongs to this row, 32 bytes; its own `hash` plays no part."""
    state = sha256(_DOMAIN)
    for value in astuple(entry)[:-1]:
        state.update(tagged(value))
    return state.digest()


def tagged(value: str | int | bytes | None) -> bytes:
    """One value with its kind and its length in front (8 bytes, big-endian)."""
    if value is None:
        kind, data = b"n", b""
    elif isinstance(value, int):
        kind, data = b"i", b"%d" % value
    elif isinstance(value, str):
        kind, data = b"s", value.encode("utf-8", "surrogatepass")
    else:
        kind, data = b"b", bytes(value)
    return kind + len(data).to_bytes(8, "big") + data


def to_line(entry: Entry) -> bytes:
    """The row as one line of an export, without the line's end: canonical JSON, hashes in hexadecimal digits."""
    values = {name: getattr(entry, name) for name in FIELDS}
    values["previous"] = entry.previous.hex()
    values["hash"] = entry.hash.hex()
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def from_line(line: bytes) -> Entry:
    """The row of an exported line. Raises ValueError for anything that `to_line` would not have written."""
    try:
        values = json.loads(line)
        # By hand, since bytes in a JSON text would be base64 to msgspec.
        values |= {name: bytes.fromhex(values[name]) for name in ("previous", "hash")}
        entry = msgspec.convert(values, Entry, strict=True, builtin_types=(bytes,))
    except (ValueError, TypeError, KeyError, RecursionError, msgspec.ValidationError) as error:
        raise ValueError(f"not a row of the audit log ({error or type(error).__name__})") from error
    if to_line(entry) != line:
        # Names twice, other spacing, unknown fields: what a reader sees must be what was hashed.
        raise ValueError("not written as an export writes it")
    return entry
