"""Cursors: where a list goes on, sealed, so that one can be neither made nor used for another list."""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import blake2b
from typing import Any

import msgspec

from proxy.control.problems import Problem

_MAC_BYTES = 16


class Cursors:
    """Seals by a key that is derived from the host's pepper; hosts of one database read each other's."""

    def __init__(self, pepper: bytes) -> None:
        self._key = blake2b(b"weir.cursor.1", key=pepper, digest_size=32).digest()

    def seal(self, bound: tuple[Any, ...], position: tuple[Any, ...]) -> str:
        """A cursor for `position` in the list that `bound` describes: its operation, filters and place."""
        inside = msgspec.json.encode(position)
        return base64.urlsafe_b64encode(self._mac(bound, inside) + inside).rstrip(b"=").decode()

    def open(self, bound: tuple[Any, ...], text: str | None) -> tuple[Any, ...] | None:
        """The position, or None for the beginning. Raises Problem 400 for a cursor that no page of this list gave."""
        if text is None:
            return None
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        mac, inside = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        spelt = base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == text
        if not spelt or not hmac.compare_digest(mac, self._mac(bound, inside)):
            raise Problem(400, "bad_cursor", "The cursor is not one that a page of this very list gave.", "$.cursor")
        position: tuple[Any, ...] = msgspec.json.decode(inside, type=tuple)
        return position

    def _mac(self, bound: tuple[Any, ...], inside: bytes) -> bytes:
        text = msgspec.json.encode((bound, inside.decode("latin-1")))
        return blake2b(text, key=self._key, digest_size=_MAC_BYTES).digest()
