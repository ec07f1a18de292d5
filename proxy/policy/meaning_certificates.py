"""Pass 3 for certificates and keys: files that a listener could not serve by, or that an upstream could not be checked
against. They are read as those who use them will read them, so that no process finds out when it is needed.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Protocol

from proxy.policy.load import file_complaint
from proxy.policy.process import Tls


class Wrong(Protocol):
    """Takes a sentence and the path that it is about."""

    def __call__(self, sentence: str, *path: str | int) -> None: ...


def judge_listener(tls: Tls | None, base: Path, wrong: Wrong, *at: str) -> None:
    """The certificate and the key of one listener; `base` is where relative paths begin."""
    if tls is None:
        return
    certificate, key = base / tls.certificate, base / tls.key
    complaint = certificate_complaint(certificate)
    if complaint is not None:
        wrong(complaint, *at, "certificate")
    unreadable = file_complaint(key)
    if unreadable is not None:
        wrong(unreadable, *at, "key")
    elif complaint is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An empty password: without one, OpenSSL would ask for it at the terminal.
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError:
            wrong(f"{key} is not that certificate's private key in PEM, without a password", *at, "key")


def certificate_complaint(path: Path) -> str | None:
    """The sentence about a file that should hold certificates; None when it does."""
    unreadable = file_complaint(path)
    if unreadable is not None:
        return unreadable
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return f"{path} holds no certificate in PEM"
    return None
