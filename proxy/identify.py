"""Step 2: whose credential is this? Nothing is asked of the network for one that this worker knows."""

from __future__ import annotations

from proxy.call import Call
from proxy.errors import Refusal
from proxy.identity.keys import Keys, expired
from proxy.identity.tokens import Tokens


def identify(call: Call, keys: Keys, tokens: Tokens | None = None) -> bool:
    """Fills `call.known` from memory. False when somebody must be asked: then await `look_up`.

    A token has dots and a key has none. Without `tokens`, no issuer is trusted and a token is a malformed key.
    """
    secret = call.head.authorization
    if secret is None:
        raise Refusal("missing_key")
    if b"." in secret and tokens is not None:
        found = tokens.known(secret, call.head.tenant, call.arrived_ns)
        if found is None:
            return False
        call.known = found
        return True
    known = keys.known(secret)
    if known is None:
        return False
    call.known = known
    judge(call)
    return True


async def look_up(call: Call, keys: Keys, tokens: Tokens | None = None) -> None:
    """Fills `call.known` from the database and, for a token, by its issuer's keys."""
    secret = call.head.authorization
    assert secret is not None
    if b"." in secret and tokens is not None:
        call.known = await tokens.look_up(secret, call.head.tenant)
        return
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
