"""Listening sockets: one SO_REUSEPORT socket per worker place, bound once and kept by the supervisor.

The kernel shares new connections among the sockets, not among processes, so a replacement that inherits a place's
socket takes over its queue and nothing is reset (journal-and-limits, "Drain").
"""

from __future__ import annotations

import errno
import socket
import ssl

from proxy.policy.process import Tls

BACKLOG = 4096  # connections waiting for a worker that is being replaced; the kernel caps it by net.core.somaxconn


_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class CannotListen(Exception):
    """The address cannot be had; the message says which and why."""


def called(host: str) -> str:
    """The address at which a listener on `host` is called from this machine: "anywhere" is none to call."""
    return _ANYWHERE.get(host, host)


def bind(host: str, port: int, places: int, *, shared: bool = False) -> list[socket.socket]:
    """One listening socket a place, all on the same address and port. Port 0 takes a free one for all of them.

    Unless `shared` (workers of a dead supervisor still drain there), a port on which somebody already listens is
    refused: SO_REUSEPORT would silently share it with another Weir of the same user. Raises CannotListen.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except OSError as error:
        raise CannotListen(f"listen: {host!r} is not an address of this host ({error.strerror})") from error
    if port and not shared:
        _refuse_if_taken(family, address, host, port)
    sockets: list[socket.socket] = []
    try:
        for _ in range(places):
            sockets.append(_listening(family, address))
            # Port 0: the first socket's port is now everyone's.
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
    except OSError as error:
        for one in sockets:
            one.close()
        raise CannotListen(_why(error, host, port)) from error
    return sockets


def _listening(family: int, address: tuple[object, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.setblocking(False)
        one.bind(address)
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def _refuse_if_taken(family: int, address: tuple[object, ...], host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise CannotListen(_why(error, host, port)) from error


def _why(error: OSError, host: str, port: int) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"listen: {where} is in use by another process; stop it or choose another port"
    if error.errno == errno.EACCES:
        return f"listen: {where} needs more rights than this user has; choose a port of 1024 or above"
    return f"listen: {where} cannot be bound ({error.strerror})"


def context_of(tls: Tls | None) -> ssl.SSLContext | None:
    """TLS for a listener that has a certificate and key. Raises OSError or ssl.SSLError for bad files."""
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.certificate, tls.key)
    return context
