"""Where requests go and what their heads say."""

from __future__ import annotations

import pytest

from proxy import __version__
from proxy.upstreams.target import Target


@pytest.mark.parametrize(
    ("url", "host", "line"),
    [
        ("https://api.openai.com/v1", "api.openai.com", "POST /v1/chat/completions HTTP/1.1"),
        ("https://api.openai.com/v1/", "api.openai.com", "POST /v1/chat/completions HTTP/1.1"),
        ("https://host.example/openai/v1", "host.example", "POST /openai/v1/chat/completions HTTP/1.1"),
        ("http://10.0.0.7:8000/v1", "10.0.0.7:8000", "POST /v1/chat/completions HTTP/1.1"),
        ("http://up:80", "up", "POST /chat/completions HTTP/1.1"),
        ("https://up:443/v1", "up", "POST /v1/chat/completions HTTP/1.1"),
        ("http://up:443/v1", "up:443", "POST /v1/chat/completions HTTP/1.1"),
        ("http://[::1]:9000/v1", "[::1]:9000", "POST /v1/chat/completions HTTP/1.1"),
        ("https://[fe80::1]/v1", "[fe80::1]", "POST /v1/chat/completions HTTP/1.1"),
    ],
)
def test_request(url: str, host: str, line: str) -> None:
    """A request is head, forwarded lines, request id, length and body, in one piece."""
    target = Target(url, "sk-secret")
    request = target.request("/chat/completions", b"content-type: application/json\r\n", b"req-1", b'{"a":1}')
    assert (
        request
        == (
            f"{line}\r\nhost: {host}\r\nauthorization: Bearer sk-secret\r\naccept-encoding: identity\r\n"
            f"user-agent: weir/{__version__}\r\ncontent-type: application/json\r\nx-request-id: req-1\r\n"
            'content-length: 7\r\n\r\n{"a":1}'
        ).encode()
    )
    assert "secret" not in repr(target)


def test_no_credential() -> None:
    """An upstream without a key gets no Authorization line."""
    assert b"authorization" not in Target("http://up:1/v1", None).head("/embeddings")


def test_address_of_a_bracketed_host() -> None:
    """An IPv6 host is connected to without its brackets."""
    target = Target("http://[::1]:9000/v1", None)
    assert (target.host, target.port, target.tls) == ("::1", 9000, False)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://user:hunter2@up/v1", "must not hold a user or password"),
        ("https://user@up/v1", "must not hold a user or password"),
        ("https://up/v1\r\nx-evil: 1", "visible ASCII"),
        ("https://up/v 1", "visible ASCII"),
        ("https://bücher.example/v1", "visible ASCII"),
        ("ftp://up/v1", "begins with http:// or https://"),
        ("up.example/v1", "begins with http:// or https://"),
        ("https://up/v1?key=1", "no query"),
        ("https://up/v1#x", "no query"),
        ("https://up/v1?", "no query"),
        ("https:///v1", "is not the name"),
        ("https://up,evil/v1", "is not the name"),
        ("https://up:99999/v1", "cannot be read"),
        ("https://up:0/v1", "between 1 and 65535"),
        ("https://up:http/v1", "cannot be read"),
        ("https://[::1/v1", "cannot be read"),
        ("https://up/v1/../admin", "not a plain path"),
        ("https://up//v1", "not a plain path"),
        ("https://up/v1\\x", "not a plain path"),
        ("", "visible ASCII"),
    ],
)
def test_urls_refused(url: str, says: str) -> None:
    """A url that could mean two things is refused with a sentence, and without its password."""
    with pytest.raises(ValueError, match=says) as fault:
        Target(url, None)
    assert "hunter2" not in str(fault.value)


@pytest.mark.parametrize("key", ["", "sk secret", "sk-secret\n", "sk-sécret", "sk\0secret"])
def test_keys_refused(key: str) -> None:
    """A key that would break the head is refused, and not shown."""
    with pytest.raises(ValueError, match="visible ASCII") as fault:
        Target("https://up/v1", key)
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize("path", ["", "chat", "/a b", "/a\r\n", "/a?b", "//a"])
def test_paths_refused(path: str) -> None:
    """Only a plain path can be put behind the base."""
    with pytest.raises(ValueError, match="not a path below"):
        Target("https://up/v1", None).head(path)
