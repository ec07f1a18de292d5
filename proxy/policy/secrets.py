"""Secrets and the environment: the only two forms in which a secret may stand in a file, and `${NAME}` in any text.

A secret is written `${NAME}` or `file:/absolute/path`. Settings and the policy snapshot carry that reference; the value
is read where it is used, by `resolve`, and is kept nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from proxy.bounds import SECRET_BYTES_MAX

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE = re.compile(rf"\$(\$\{{)|\$\{{({_NAME})(?::-([^}}]*))?\}}|(\$\{{[^}}]*\}}?)")
_PASSWORD_IN_QUERY = re.compile(r"[?&]password=([^&]*)", re.IGNORECASE)
_SECRET = re.compile(rf"\$\{{({_NAME})(:-)?\}}|file:(/.+)")


class SecretMissing(Exception):
    """A secret that cannot be read. The message names its reference and never its value."""


class Unset(Exception):
    """A variable of a text that is not set; `args[0]` is the sentence."""


def substitute(text: str, env: Mapping[str, str]) -> str:
    """`text` with `${NAME}` and `${NAME:-default}` replaced; `$${` stands for `${`. An empty variable counts as unset.

    Raises Unset with the sentence for the operator.
    """

    def value(found: re.Match[str]) -> str:
        escaped, name, default, odd = found.groups()
        if escaped is not None:
            return "${"
        if odd is not None:
            raise Unset(f"{odd} is not a variable; write ${{NAME}} or ${{NAME:-default}}")
        held = env.get(name)
        if held:
            return held
        if default is None:
            raise Unset(f"${{{name}}} is not set in the environment; set it, or write ${{{name}:-default}}")
        return str(default)

    return _VARIABLE.sub(value, text)


def has_variable(text: str) -> bool:
    """Whether `substitute` would replace anything."""
    return _VARIABLE.search(text) is not None


def complaint(reference: str) -> str | None:
    """The sentence about a text that is no secret reference; None when it is one. Never repeats the text."""
    if _SECRET.fullmatch(reference) is not None:
        return None
    if reference.startswith("file:"):
        return "a secret's file needs an absolute path: file:/path"
    if re.fullmatch(rf"\$\{{{_NAME}:-.+\}}", reference) is not None:
        return "a secret cannot have a default in the file; write ${NAME}, or ${NAME:-} where it may be absent"
    return "a secret cannot stand in the file; write ${NAME} or file:/path"


def holds_password(url: str) -> bool:
    """Whether a URL, as written in the file, has a password that is not a variable."""
    _, _, rest = url.partition("://")
    _, _, password = rest.rpartition("@")[0].partition(":")
    query = _PASSWORD_IN_QUERY.search(rest)
    written = [word for word in (password, query[1] if query else "") if word]
    return any(complaint(word) is not None for word in written)


def resolve(reference: str, env: Mapping[str, str] | None = None) -> bytes:
    """The value behind a reference, without its final newline; b"" only for an unset `${NAME:-}`.

    Raises SecretMissing.
    """
    found = _SECRET.fullmatch(reference)
    if found is None:
        raise SecretMissing("not a secret reference")
    name, optional, path = found.groups()
    if name is not None:
        value = (os.environ if env is None else env).get(name, "").encode()
        if not value and not optional:
            raise SecretMissing(f"{reference} is not set in the environment")
    else:
        try:
            with Path(path).open("rb") as file:
                value = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            raise SecretMissing(f"{reference} cannot be read: {error.strerror}") from error
        value = value.removesuffix(b"\n").removesuffix(b"\r")
        if not value:
            raise SecretMissing(f"{reference} is empty")
    if len(value) > SECRET_BYTES_MAX:
        raise SecretMissing(f"{reference} is longer than {SECRET_BYTES_MAX} bytes")
    if any(byte < 0x20 or byte == 0x7F for byte in value):
        # The value becomes a header: a line break in it would become a second header.
        raise SecretMissing(f"{reference} holds a control character or more than one line")
    return value
