"""Step 2: whose credential is this? Nothing is asked of the network for a key this worker knows."""

from __future__ import annotations

from proxy.call import Call
from proxy.errors import Refusal
from proxy.identity.keys import Keys, expired


def identify(call: Call, keys: Keys) -> bool:
    """Fills `call.known` from memory. False when the database must be asked: then await `look_up`."""
    secret = call.head.authorization
    if secret is None:
        raise Refusal("missing_key")
    known = keys.known(secret)
    if known is None:
        return False
    call.known = known
    judge(call)
    return True


async def look_up(call: Call, keys: Keys) -> None:
    """Fills `call.known` from the database."""
    secret = call.head.authorization
    assert secret is not None
    call.known = await keys.look_up(secret)
    judge(call)


def judge(call: Call) -> None:
    """What holds for a known key on this very request: its time, and the tenant that the client says it is of."""
    principal = call.known.principal
    if principal.expires_us is not None and expired(principal):
        raise Refusal("expired_api_key")
    tenant = call.head.tenant
    # The credential decides. The header may agree; anything else is refused, never guessed.
    if tenant is not None and tenant != principal.tenant.encode():
        raise Refusal("tenant_mismatch")
