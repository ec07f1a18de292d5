"""A request's headers are judged and read in one pass, and only what is on the list goes upstream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy._scan import BadHead, Head, read_head
from proxy.bounds import REQUEST_ID_BYTES_MAX
from proxy.errors import KINDS

# What the official SDK sends (openai-python 1.x over httpx).
SDK = (
    (b"Host", b"127.0.0.1:8080"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"Connection", b"keep-alive"),
    (b"Accept", b"application/json"),
    (b"Content-Type", b"application/json"),
    (b"User-Agent", b"OpenAI/Python 1.54.0"),
    (b"X-Stainless-Lang", b"python"),
    (b"X-Stainless-Package-Version", b"1.54.0"),
    (b"X-Stainless-OS", b"Linux"),
    (b"X-Stainless-Arch", b"x64"),
    (b"X-Stainless-Async", b"false"),
    (b"x-stainless-retry-count", b"0"),
    (b"Authorization", b"Bearer wk_live_abc"),
    (b"Content-Length", b"1017"),
)
ONCE = [
    (b"Authorization", b"Bearer x"),
    (b"X-Api-Key", b"x"),
    (b"Api-Key", b"x"),
    (b"Content-Type", b"application/json"),
    (b"Content-Length", b"5"),
    (b"Content-Encoding", b"identity"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Host", b"a.example"),
    (b"X-Tenant-ID", b"acme"),
    (b"Expect", b"100-continue"),
    (b"X-Request-ID", b"r1"),
]


def head(*lines: tuple[bytes, bytes], tag: bytes = b"") -> Head:
    return read_head(lines, tag)


def refused(*lines: tuple[bytes, bytes], tag: bytes = b"") -> tuple[str, str]:
    with pytest.raises(BadHead) as caught:
        read_head(lines, tag)
    code, detail = caught.value.args
    assert KINDS[code].message.format(detail)
    assert detail.isascii()
    assert detail.isprintable()
    return code, detail


def test_nothing_is_there() -> None:
    """Without headers everything is absent, and nothing is forwarded."""
    found = head()
    assert (found.authorization, found.content_type, found.expect, found.request_id) == (None, None, None, None)
    assert (found.tenant, found.host, found.tag, found.forward) == (None, None, None, b"")
    assert (found.content_length, found.chunked) == (-1, False)


def test_the_sdk_s_headers() -> None:
    """The usual request: what is needed is found, and neither the key nor the SDK's own headers go upstream."""
    found = read_head(SDK)
    assert found.authorization == b"wk_live_abc"
    assert (found.host, found.content_length, found.content_type) == (b"127.0.0.1:8080", 1017, b"application/json")
    assert found.forward == b"accept: application/json\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(("name", "value"), ONCE)
def test_what_must_stand_once(name: bytes, value: bytes) -> None:
    """A second line of such a field is refused, in any case of letters, even with an equal value."""
    head((name, value))
    for second in (name, name.upper(), name.lower()):
        assert refused((name, value), (b"Accept", b"*/*"), (second, value)) == ("bad_header", name.decode().lower())


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer  ", b"Bearer\t", b" Bearer "])
def test_bearer(scheme: bytes) -> None:
    """The scheme is read in any case, and the blanks around the token are not part of it."""
    assert head((b"Authorization", scheme + b"wk_x ")).authorization == b"wk_x"


@pytest.mark.parametrize(
    "value", [b"", b"Bearer", b"Bearer ", b"Basic dTpw", b"wk_x", b"Bearerwk_x", b"Bearer\xa0x", b"Token x"]
)
def test_other_schemes_are_no_credential(value: bytes) -> None:
    """Another scheme or an empty token is a call without a key, to be told so as such."""
    assert head((b"Authorization", value)).authorization is None
    assert head((b"Authorization", value), (b"x-api-key", b"wk_y")).authorization == b"wk_y"


@pytest.mark.parametrize("name", [b"x-api-key", b"X-API-KEY", b"api-key", b"Api-Key"])
def test_other_credential_headers(name: bytes) -> None:
    """Anthropic's and Azure's headers carry the same key; an empty one carries none."""
    assert head((name, b" wk_x\t")).authorization == b"wk_x"
    assert head((name, b"")).authorization is None
    assert head((name, b"wk_x"), (b"Authorization", b"Bearer wk_x")).authorization == b"wk_x"


def test_credentials_that_disagree() -> None:
    """Two different credentials are refused in each pair and order: which of them is meant?"""
    lines = [(b"Authorization", b"Bearer a"), (b"x-api-key", b"b"), (b"api-key", b"c")]
    for first in lines:
        for second in lines:
            if first is not second:
                code, detail = refused(first, second)
                assert code == "bad_header"
                assert "disagree" in detail


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"\r\nX-Evil: 1"])
@pytest.mark.parametrize("length", [0, 1, 14, 15, 16, 17, 40])
def test_line_breaks_in_values(bad: bytes, length: int) -> None:
    """CR, LF and NUL are refused at any place of any value, of fields that we do not know too."""
    for name in (b"Accept", b"X-Whatever", b"Authorization"):
        for value in (b"x" * length + bad, bad + b"x" * length, b"x" * length + bad + b"y" * 20):
            assert refused((name, value)) == ("bad_header", name.decode())


@pytest.mark.parametrize("value", [b"0", b"5", b" 7 ", b"007", b"999999999999999999"])
def test_content_length(value: bytes) -> None:
    """Digits are a length."""
    assert head((b"Content-Length", value)).content_length == int(value)


@pytest.mark.parametrize("value", [b"", b" ", b"-1", b"+5", b"5,5", b"5 5", b"0x5", b"1e3", b"\xb2", b"9" * 19, b"5.0"])
def test_wrong_content_length(value: bytes) -> None:
    """Anything else is refused: parsers differ in what they make of it."""
    assert refused((b"Content-Length", value)) == ("bad_header", "content-length")


def test_two_lengths() -> None:
    """Content-Length beside Transfer-Encoding is refused: one of the two readers behind us would take the other."""
    lines = [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")]
    assert refused(*lines)[0] == refused(*reversed(lines))[0] == "bad_header"


@pytest.mark.parametrize(
    "value", [b"gzip, chunked", b",chunked", b"chunked,", b"identity", b"", b"chunked x", b"x\xffchunked"]
)
def test_transfer_encoding(value: bytes) -> None:
    """Only `chunked` is understood, in any case."""
    assert head((b"Transfer-Encoding", b"Chunked")).chunked
    assert refused((b"Transfer-Encoding", value))[0] == "unsupported_transfer_coding"


def test_content_encoding() -> None:
    """A compressed body is refused by name; identity is none."""
    head((b"Content-Encoding", b"Identity"))
    head((b"Content-Encoding", b""))
    assert refused((b"Content-Encoding", b"gzip")) == ("compressed_body", "gzip")
    assert refused((b"content-encoding", b"identity, br")) == ("compressed_body", "identity, br")


def test_detail_is_bounded_and_printable() -> None:
    """What a client sent is shown in a sentence: cut, and with nothing that could leave it."""
    assert refused((b"Content-Encoding", b"\x1b[31m\xff" + b"x" * 100)) == ("compressed_body", "?[31m?" + "x" * 58)


@pytest.mark.parametrize("value", [b"a.example", b"A-1.example:8080", b"[::1]:80", b"127.0.0.1", b"under_score", b""])
def test_hosts(value: bytes) -> None:
    """Names, addresses and ports are hosts."""
    assert head((b"Host", value)).host == value


@pytest.mark.parametrize(
    "value", [b"localhost:4000/#@evil", b"a b", b"a@b", b"a,b", b"a\\b", b"a?b", b"a%00", b"\xe9", b"a;b", b"<a>"]
)
def test_bad_hosts(value: bytes) -> None:
    """Characters that no host has are refused."""
    assert refused((b"Host", value)) == ("bad_header", "host")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"abc-123", True),
        (b"x" * REQUEST_ID_BYTES_MAX, True),
        (b"!~", True),
        (b"x" * (REQUEST_ID_BYTES_MAX + 1), False),
        (b"", False),
        (b"a b", False),
        (b"a\x7f", False),
        (b"\xc3\xa9", False),
        (b"a\tb", False),
    ],
)
def test_request_id(value: bytes, kept: bool) -> None:
    """A client's id is kept when it is short and visible ASCII, and otherwise as if it were not there."""
    assert head((b"X-Request-ID", value)).request_id == (value if kept else None)


def test_tenant_expect_and_tag() -> None:
    """Values are found under any case of their names, without the blanks around them."""
    found = head((b"x-tenant-id", b" acme "), (b"EXPECT", b"100-continue"), (b"X-Team", b"\tblue"), tag=b"x-TEAM")
    assert (found.tenant, found.expect, found.tag) == (b"acme", b"100-continue", b"blue")


def test_tags() -> None:
    """A tag stands once, may be a field that is read otherwise too, and is never a credential."""
    assert refused((b"X-Team", b"a"), (b"x-team", b"a"), tag=b"X-Team") == ("bad_header", "x-team")
    assert head((b"X-Request-ID", b"r"), tag=b"x-request-id").tag == b"r"
    assert head((b"X-Team", b""), tag=b"x-team").tag == b""
    assert head((b"X-Team", b"a")).tag is None
    for name in (b"Authorization", b"x-api-key", b"api-key"):
        assert head((name, b"Bearer k"), tag=name).tag is None


def test_what_is_forwarded() -> None:
    """Exactly the five fields of the list, in their order, with their values as they stood but for outer blanks."""
    lines = (
        (b"TraceParent", b" 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        (b"tracestate", b"a=1"),
        (b"tracestate", b"b=2"),
        (b"OpenAI-Beta", b"assistants=v2\t"),
        (b"content-type", b"application/json; charset=utf-8"),
        (b"ACCEPT", b"text/event-stream"),
    )
    assert head(*lines).forward == (
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
        b"tracestate: a=1\r\ntracestate: b=2\r\nopenai-beta: assistants=v2\r\n"
        b"content-type: application/json; charset=utf-8\r\naccept: text/event-stream\r\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"Authorization",
            b"Cookie",
            b"X-Forwarded-For",
            b"Forwarded",
            b"X-Real-IP",
            b"X-HTTP-Method-Override",
            b"Via",
        ),
        *(
            b"OpenAI-Organization",
            b"OpenAI-Project",
            b"User-Agent",
            b"Accept-Encoding",
            b"Content_Type",
            b"open_ai-beta",
        ),
        *(
            b"openai_beta",
            b"trace_state",
            b"accept ",
            b"x-stainless-lang",
            b"TE",
            b"Trailer",
            b"Upgrade",
            b"Keep-Alive",
            b"",
        ),
    ],
)
def test_what_is_not_forwarded(name: bytes) -> None:
    """Everything else stays here, names with an underscore first of all."""
    assert head((name, b"1")).forward == b""


def test_odd_values_are_not_forwarded() -> None:
    """Bytes from 0x80 on change on their way through proxies, and empty values say nothing."""
    for value in (b"\xff", b"a" * 20 + b"\x80", b"\x80" + b"a" * 20, b"caf\xc3\xa9", b"", b"  "):
        assert head((b"Accept", value)).forward == b""


@pytest.mark.parametrize(
    "value", [b"traceparent", b"close, TraceParent", b"a,,traceparent ,b", b"a,\ttraceparent", b"\ttraceparent\t"]
)
def test_fields_for_this_hop_only(value: bytes) -> None:
    """What Connection names is not for the upstream (RFC 9110, 7.6.1), wherever that line stands."""
    lines = ((b"traceparent", b"00-1"), (b"Connection", value), (b"accept", b"*/*"))
    assert head(*lines).forward == head(*reversed(lines)).forward == b"accept: */*\r\n"
    assert head((b"Connection", b"trace parent, traceparen, traceparents"), (b"traceparent", b"1")).forward != b""


def test_forwarded_lines_are_bounded() -> None:
    """A client cannot make the upstream's head long with many lines."""
    assert len(head(*[(b"Accept", b"a")] * 16).forward) == 16 * len(b"accept: a\r\n")
    assert refused(*[(b"Accept", b"a")] * 17) == ("bad_header", "accept")


NAMES = st.sampled_from([name for name, _ in (*SDK, *ONCE)] + [b"tracestate", b"X-Team", b"a_b", b"Connection"])
VALUES = st.sampled_from([b"Bearer x", b"chunked", b"5", b"identity", b"", b"close"]) | st.binary(max_size=24)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_any_lines(lines: list[tuple[bytes, bytes]]) -> None:
    """Whatever the lines are, they are read or refused, and what is forwarded are well-formed lines of the list."""
    found = None
    try:
        found = read_head(tuple(lines), b"x-team")
    except BadHead as error:
        code = error.args[0]
    if found is None:
        assert code in KINDS
        return
    allowed = {b"content-type", b"accept", b"openai-beta", b"traceparent", b"tracestate"}
    for line in found.forward.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        assert name in allowed
        assert value.isascii()
        assert (name, value) in [(n.lower(), v.strip(b" \t")) for n, v in lines]
