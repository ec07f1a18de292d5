"""Anchors: signed words of "row N has this hash", kept outside the database. Pure.

An anchor's signature (Ed25519) covers the row's place and hash, the time, and the hash of the anchor's line before,
so that an anchor can neither be made nor taken out of the middle without the key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct

from proxy.audit.chain import tagged

_DOMAIN = b"weir.audit.anchor.1\0"


class Anchor(Struct, frozen=True, forbid_unknown_fields=True):
    """Row `seq` had `hash`, said the holder of `key` at `at_us`. All but the numbers are hexadecimal digits."""

    seq: int
    hash: str
    at_us: int  # wall clock
    key: str  # key_id of the public key
    previous: str  # SHA-256 of the line before; "" for the first
    signature: str


class BadAnchor(Exception):
    """A line of the anchors' file is not what it should be; the message says which and why."""


def key_id(public: bytes) -> str:
    """A short name of a public key (32 bytes): the first 16 hexadecimal digits of its SHA-256."""
    return sha256(public).hexdigest()[:16]


def _signed(anchor: Anchor) -> bytes:
    values = (anchor.seq, anchor.hash, anchor.at_us, anchor.key, anchor.previous)
    return _DOMAIN + b"".join(tagged(value) for value in values)


def sign(private: Ed25519PrivateKey, seq: int, row_hash: bytes, at_us: int, line_before: bytes | None) -> bytes:
    """The line of a new anchor, with its line's end."""
    key = key_id(private.public_key().public_bytes_raw())
    previous = "" if line_before is None else sha256(line_before).hexdigest()
    bare = Anchor(seq, row_hash.hex(), at_us, key, previous, "")
    whole = msgspec.structs.replace(bare, signature=private.sign(_signed(bare)).hex())
    return to_line(whole)


def to_line(anchor: Anchor) -> bytes:
    """One line of the file, with its end."""
    return json.dumps(msgspec.structs.asdict(anchor), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def read(
    lines: Iterable[bytes], publics: Mapping[str, bytes], before: bytes | None = None
) -> tuple[list[Anchor], list[str]]:
    """The anchors that hold, in order, and a sentence for each line that does not.

    lines: of the file, each with its end; a last one without is an append that was cut off, and is passed over.
    publics: key_id → public key (32 bytes). before: the line before the first of these.
    """
    found: list[Anchor] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            anchor = _read(line, before, publics)
            if found and anchor.seq < found[-1].seq:
                raise BadAnchor(f"anchors row {anchor.seq} after row {found[-1].seq}")
            found.append(anchor)
        except BadAnchor as error:
            wrong.append(f"line {number} of the anchors {error}")
        before = line
    return found, wrong


def _read(line: bytes, before: bytes | None, publics: Mapping[str, bytes]) -> Anchor:
    try:
        anchor = msgspec.json.decode(line, type=Anchor)
        signature = bytes.fromhex(anchor.signature)
    except (ValueError, msgspec.DecodeError) as error:
        raise BadAnchor(f"cannot be read ({error})") from error
    public = publics.get(anchor.key)
    if public is None:
        known = ", ".join(publics) or "none"
        raise BadAnchor(f"is signed with key {anchor.key[:16]!r}, which is not among those given ({known})")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed(anchor))
    except InvalidSignature:
        raise BadAnchor("has a signature that its key did not make") from None
    if to_line(anchor) != line:
        raise BadAnchor("is not written as an anchor is written")
    if anchor.previous != ("" if before is None else sha256(before).hexdigest()):
        raise BadAnchor("does not follow the line before it: one was removed, moved or changed")
    return anchor
