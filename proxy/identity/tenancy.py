"""Which tenant a call is of: the one place that decides it. Pure; docs/tenancy.md tells it to people.

The credential decides. `X-Tenant-ID` and the subdomain of `listen.tenant_domain` may agree with it or, for a credential
of several tenants, choose among those; they are never believed against it, and whether another tenant exists is never
looked at, so that no answer can tell.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import lru_cache

from proxy.bounds import TENANTS_CACHED_MAX
from proxy.errors import Refusal

# The tenant of the call under way, for log lines of code that knows nothing of calls. "": none, or not yet known.
TENANT: ContextVar[str] = ContextVar("weir.tenant", default="")

NOBODY = b""  # what no tenant is called: asked for where the request contradicts itself


def resolve(own: tuple[str, ...], asked: bytes | None) -> str:
    """The tenant of a call whose credential is of these tenants, at least one. Raises Refusal.

    asked: what `asked_for` found. tenant_required: there are several and none was asked for. tenant_mismatch: another
    was asked for.
    """
    if asked is None:
        if len(own) == 1:
            return own[0]
        raise Refusal("tenant_required")
    for tenant in own:
        if tenant.encode() == asked:
            return tenant
    raise Refusal("tenant_mismatch")


def asked_for(header: bytes | None, host: bytes | None, domain: bytes | None) -> bytes | None:
    """The tenant that a request asks for by its X-Tenant-ID and its Host; None: it asks for none.

    domain: in lower case, or None where hosts say nothing. Two that differ are NOBODY: which one was meant would be a
    guess, and the refusal has to wait until the credential is known to be good.
    """
    if domain is None or host is None:
        return header
    named = _named_by(host, domain)
    if named is None or named == header:
        return header
    return named if header is None else NOBODY


def _named_by(host: bytes, domain: bytes) -> bytes | None:
    """The subdomain that a Host names; None for the domain itself and for hosts elsewhere: an address, localhost.

    More than one label below the domain is taken as it stands, and is no tenant's name.
    """
    name = host.lower()
    if not name.startswith(b"["):
        name = name.partition(b":")[0].removesuffix(b".")
    below = name.removesuffix(domain)
    return below[:-1] if below != name and below.endswith(b".") else None


@lru_cache(maxsize=TENANTS_CACHED_MAX)
def line_of(tenant: str) -> bytes:
    """The header line by which every answer says whose it is."""
    return b"x-tenant-id: %b\r\n" % tenant.encode()
