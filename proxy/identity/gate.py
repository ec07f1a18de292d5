"""All that step 2 judges by, in one place: keys and tokens, where clients are, how hosts name tenants, who fails."""

from __future__ import annotations

from proxy import bounds
from proxy.errors import Refusal
from proxy.exchange import Exchange
from proxy.identity.addresses import Address, Block, blocks_of, client_of
from proxy.identity.failures import COUNTED, Failures
from proxy.identity.keys import Keys
from proxy.identity.tokens import Tokens
from proxy.policy.process import Listen


class Gate:
    """One to a worker. Without `tokens` no issuer is trusted, and a token is a malformed key."""

    __slots__ = ("domain", "failures", "keys", "refuse_stale", "tokens", "trusted")

    def __init__(
        self,
        keys: Keys,
        tokens: Tokens | None = None,
        failures: Failures | None = None,
        *,
        trusted: tuple[Block, ...] = (),
        domain: bytes | None = None,
    ) -> None:
        """trusted: proxies whose X-Forwarded-For counts. domain: whose subdomains name tenants, in lower case."""
        self.keys = keys
        self.tokens = tokens
        self.failures = failures or Failures(keys.arena, bounds.FAILURES_PER_MINUTE_DEFAULT)
        self.trusted = trusted
        self.domain = domain
        self.refuse_stale = False  # nobody is served while it is not known which credentials have ended

    @classmethod
    def of(cls, listen: Listen, keys: Keys, tokens: Tokens | None) -> Gate:
        """As the operator wrote it."""
        return cls(
            keys,
            tokens,
            Failures(keys.arena, listen.failures_per_minute),
            trusted=blocks_of(tuple(listen.trusted_proxies)),
            domain=None if listen.tenant_domain is None else listen.tenant_domain.encode(),
        )

    def client(self, exchange: Exchange) -> Address | None:
        """Where the client of this request is. Raises Refusal bad_header."""
        return client_of(exchange.peer, exchange.raw_headers, self.trusted)

    def wait_turn(self, exchange: Exchange) -> None:
        """Before a credential is looked at that is not known here. Raises Refusal where too many bad ones come from."""
        wait_ms = self.failures.hold(self.client(exchange), exchange.arrived_ns)
        if wait_ms:
            raise Refusal("credential_not_checked", retry_after_ms=wait_ms)

    def refused(self, refusal: Refusal, exchange: Exchange) -> Refusal:
        """The refusal that a client gets for this one: a site with too many bad credentials is told to wait."""
        if refusal.code in COUNTED:
            wait_ms = self.failures.note(self.client(exchange), exchange.arrived_ns)
            if wait_ms:
                return Refusal("too_many_failures", retry_after_ms=wait_ms)
        return refusal
