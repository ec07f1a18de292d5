"""Where an upstream is and what it is told: the request's head, with the credential that is its own."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from proxy import __version__
from proxy.policy import secrets
from proxy.policy.snapshot import Upstream

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\]")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
_IDENTITY = ("tls", "host", "port", "base", "_credential")
_DEFAULT_PORT = {"http": 80, "https": 443}


class Target:
    """One upstream's origin and base path with its credential.

    url: the base, such as `https://api.openai.com/v1`; its path is kept in front of each endpoint's. key: sent as
    `Authorization: Bearer`, or None for an upstream without one. Both are fixed here, together, so the credential can
    only go to this scheme, host and port. Raises ValueError that says what is wrong, without the key.
    """

    __slots__ = ("_credential", "_heads", "base", "host", "host_header", "port", "tls")

    def __init__(self, url: str, key: str | None) -> None:
        scheme, self.host, self.port, self.base = _split(url)
        self.tls = scheme == "https"
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.host_header = shown if self.port == _DEFAULT_PORT[scheme] else f"{shown}:{self.port}"
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise ValueError(
                "the upstream's key must be visible ASCII characters without spaces; "
                "does the variable or file hold a line break, or nothing?"
            )
        self._credential = key
        self._heads: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Target({'https' if self.tls else 'http'}://{self.host_header}{self.base})"

    def same_as(self, other: Target) -> bool:
        """Whether both send the same to the same place: not so when the credential has been rotated."""
        return all(getattr(self, name) == getattr(other, name) for name in _IDENTITY)

    def head(self, path: str) -> bytes:
        """The fixed part of a POST's head to `path`, which stands below the base, such as `/chat/completions`."""
        head = self._heads.get(path)
        if head is None:
            if not path.startswith("/") or not _PATH.fullmatch(path):
                raise ValueError(f"{path!r} is not a path below the upstream's base: it must look like '/embeddings'")
            credential = f"authorization: Bearer {self._credential}\r\n" if self._credential is not None else ""
            head = self._heads[path] = (
                f"POST {self.base}{path} HTTP/1.1\r\n"
                f"host: {self.host_header}\r\n"
                f"{credential}"
                "accept-encoding: identity\r\n"
                f"user-agent: weir/{__version__}\r\n"
            ).encode("ascii")
        return head

    def request(self, path: str, forward: bytes, request_id: bytes, body: bytes) -> bytes:
        """One whole request. forward: header lines, each ended by CRLF; request_id: 1 or more visible characters."""
        return b"".join(
            (
                self._heads.get(path) or self.head(path),
                forward,
                b"x-request-id: ",
                request_id,
                b"\r\ncontent-length: %d\r\n\r\n" % len(body),
                body,
            )
        )


def target_of(upstream: Upstream) -> Target:
    """Where an upstream of the policy is, with its credential as it stands now. Raises SecretMissing or ValueError."""
    key = None if upstream.key is None else secrets.resolve(upstream.key) or None
    return Target(upstream.url, None if key is None else key.decode("latin-1"))


def _split(url: str) -> tuple[str, str, int, str]:
    """(scheme, host without brackets, port, path without a slash at its end)."""
    if not re.fullmatch(r"[!-~]+", url):
        raise ValueError("an upstream's url must be visible ASCII characters; write a host such as xn--… in that form")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as fault:
        raise ValueError(f"the upstream's url cannot be read: {fault}") from None
    if parts.username is not None or parts.password is not None:
        # The url itself stays out of this sentence: it holds a password.
        raise ValueError("an upstream's url must not hold a user or password; give the credential as `key`")
    if parts.scheme not in _DEFAULT_PORT:
        raise ValueError(f"{url!r}: an upstream's url begins with http:// or https://")
    if "?" in url or "#" in url:
        raise ValueError(f"{url!r}: an upstream's url ends with its path; it has no query and no fragment")
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc.rstrip(":")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{url!r}: {host!r} is not the name or address of a host")
    if port == 0:
        raise ValueError(f"{url!r}: a port lies between 1 and 65535")
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path) or any(part in (".", "..") for part in path.split("/")):
        raise ValueError(f"{url!r}: {parts.path!r} is not a plain path")
    return parts.scheme, host.strip("[]"), port or _DEFAULT_PORT[parts.scheme], path
