"""Tokens of people: what opens a session or takes up an invite. Shown once; only a digest is stored."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Literal

TOKEN_BYTES = 32  # random ones in a token: nobody guesses, so a plain hash is enough to store


def new_token(kind: Literal["invite", "session"]) -> str:
    """A new token; its first word lets people and scanners of leaks know what it is."""
    return f"weir_{kind}_{secrets.token_urlsafe(TOKEN_BYTES)}"


def digest_of(token: str) -> bytes:
    """What is stored of a token, 32 bytes."""
    return sha256(b"weir.token.1\0" + token.encode("utf-8", "surrogatepass")).digest()


def new_id(kind: Literal["usr", "inv", "ses"]) -> str:
    """A public name for a person, an invite or a session: safe to log, to show and to type."""
    return f"{kind}_{secrets.token_hex(10)}"
