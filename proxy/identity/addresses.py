"""Where a client is: its own address, or what the proxies that the operator trusts say it is. Pure.

An address is (version, number). IPv4 written inside IPv6 (`::ffff:192.0.2.1`, RFC 4291, 2.5.5.2) is IPv4: a socket that
listens on both shows every IPv4 client so.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from proxy.bounds import ADDRESSES_CACHED_MAX, FORWARDED_ADDRESSES_MAX
from proxy.errors import Refusal

Address = tuple[int, int]  # version, number
Block = tuple[int, int, int]  # version, number, mask

_FORWARDED = b"x-forwarded-for"
_MAPPED = IPv6Network("::ffff:0:0/96")
_MAPPED_BITS = 96
_SITE_BITS = 64  # of an IPv6 address: the rest is its holder's to choose


def block_of(text: str) -> Block:
    """A CIDR block. Raises ValueError for what is none, or has bits outside its mask."""
    network: IPv4Network | IPv6Network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS and network.subnet_of(_MAPPED):
        inner = network.network_address.ipv4_mapped
        assert inner is not None
        network = IPv4Network((inner, network.prefixlen - _MAPPED_BITS))
    return network.version, int(network.network_address), int(network.netmask)


@lru_cache(maxsize=ADDRESSES_CACHED_MAX)
def blocks_of(texts: tuple[str, ...]) -> tuple[Block, ...]:
    """Several of them. Raises ValueError."""
    return tuple(block_of(text) for text in texts)


@lru_cache(maxsize=ADDRESSES_CACHED_MAX)
def address_of(text: str) -> Address | None:
    """An address; None for what is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            # A scope is a word of this machine's own; the address is the same in all of them.
            address = IPv6Address(int(address))
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    return address.version, int(address)


def within(address: Address | None, blocks: tuple[Block, ...]) -> bool:
    """Whether the address lies in one of the blocks. None, an unknown address, lies in no block."""
    if address is None:
        return False
    version, number = address
    return any(version == of and number & mask == network for of, network, mask in blocks)


def site_of(address: Address | None) -> str:
    """A word for whoever holds the address: an IPv6 client may choose among the addresses of its /64."""
    if address is None:
        return ""
    version, number = address
    return f"{version} {number if version == 4 else number >> _SITE_BITS}"


def client_of(peer: str, raw_headers: tuple[tuple[bytes, bytes], ...], trusted: tuple[Block, ...]) -> Address | None:
    """The client behind a connection from `peer`. None when the connection has no address: a Unix socket.

    X-Forwarded-For counts only from a trusted peer. Each proxy adds at the right whom it was called by, so the client
    is the rightmost that is not trusted itself; what stands left of it is the client's own word. Raises Refusal
    bad_header for a chain that cannot be read: which part of it is true nobody knows.
    """
    address = address_of(peer)
    if not trusted or not within(address, trusted):
        return address
    values = [value for name, value in raw_headers if name.lower() == _FORWARDED]
    if not values:
        return address  # the proxy itself calls: its health check
    chain = _chain(b",".join(values))
    return next((each for each in reversed(chain) if not within(each, trusted)), chain[0])


def _chain(value: bytes) -> list[Address]:
    """The addresses of an X-Forwarded-For. Raises Refusal bad_header."""
    parts = value.split(b",", FORWARDED_ADDRESSES_MAX)
    if len(parts) <= FORWARDED_ADDRESSES_MAX:
        chain = [_forwarded(part.decode("latin-1").strip(" \t")) for part in parts]
        found = [address for address in chain if address is not None]
        if len(found) == len(chain):
            return found
    raise Refusal("bad_header", "x-forwarded-for")


def _forwarded(text: str) -> Address | None:
    """One of them: an address, which some proxies write with brackets or with a port."""
    if "%" in text:
        return None  # the scope of another machine
    if text.startswith("["):
        inner, bracket, port = text[1:].partition("]")
        fits = bracket and (not port or _port(port[:1], port[1:])) and ":" in inner
        return address_of(inner) if fits else None
    inner, colon, port = text.partition(":")
    if colon and "." in inner and ":" not in port:
        return address_of(inner) if _port(colon, port) else None
    return address_of(text)


def _port(colon: str, digits: str) -> bool:
    return colon == ":" and digits.isascii() and digits.isdecimal() and len(digits) <= 5
