"""Every refusal Weir can give: code, status, whose fault, one sentence, and whether a retry can help.

Steps raise `Refusal`; `accept` shapes it as the dialect's own error. `type` and `code` follow OpenAI's error
object (openai-openapi, `Error`); `retry` becomes `x-should-retry`, which the official SDKs obey
(openai-python, `_base_client.py`, `_should_retry`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Fault = Literal["client", "gateway", "upstream"]


class Kind(NamedTuple):
    """One row of the table: what a client sees of a refusal."""

    status: int
    type: str
    fault: Fault
    retry: bool
    message: str


class Refusal(Exception):
    """A call that is refused before the first byte. `detail` fills the `{}` of the kind's message."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        param: str | None = None,
        retry_after_ms: int = 0,
        headers: bytes = b"",
    ) -> None:
        super().__init__(code, detail)
        self.code = code
        self.kind = KINDS[code]
        self.detail = detail
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.headers = headers  # lines that the answer carries besides, each ended by CRLF

    @property
    def message(self) -> str:
        """The sentence for the client: names no key, no prompt and no upstream account."""
        return self.kind.message.format(self.detail)


_BAD = "invalid_request_error"

KINDS: dict[str, Kind] = {
    # accept: the shape of the request
    "unknown_endpoint": Kind(404, _BAD, "client", False, "There is no endpoint {}."),
    "method_not_allowed": Kind(405, _BAD, "client", False, "This endpoint does not take {}."),
    "bad_request": Kind(400, _BAD, "client", False, "The request is malformed: {}."),
    "bad_header": Kind(400, _BAD, "client", False, "A request header is malformed or doubled: {}."),
    "unsupported_transfer_coding": Kind(501, _BAD, "client", False, "Transfer-Encoding {} is not supported."),
    "compressed_body": Kind(415, _BAD, "client", False, "Compressed request bodies ({}) are not accepted."),
    "unsupported_media_type": Kind(415, _BAD, "client", False, "Content-Type must be application/json, not {}."),
    "expectation_failed": Kind(417, _BAD, "client", False, "Only 'Expect: 100-continue' is understood, not {}."),
    "body_too_large": Kind(413, _BAD, "client", False, "The body is larger than {} bytes."),
    "headers_too_large": Kind(
        431, _BAD, "client", False, "The request's line or one of its headers is larger than {} bytes."
    ),
    "body_timeout": Kind(408, _BAD, "client", False, "The body did not arrive within {} seconds."),
    "bad_json": Kind(400, _BAD, "client", False, "The body is not a valid JSON object: {}."),
    "duplicate_key": Kind(400, _BAD, "client", False, "The body names the key {} more than once."),
    "bad_value": Kind(400, _BAD, "client", False, "The body is wrong: {}."),
    # identify
    "missing_key": Kind(401, _BAD, "client", False, "No API key: send 'Authorization: Bearer wk_...'."),
    "invalid_api_key": Kind(401, _BAD, "client", False, "Incorrect API key provided."),
    "expired_api_key": Kind(401, _BAD, "client", False, "This API key has expired."),
    "too_many_failures": Kind(
        429, "requests", "client", False, "Too many requests from this address had no valid credential: wait."
    ),
    "credential_not_checked": Kind(
        429,
        "requests",
        "client",
        True,
        "Many bad credentials come from this address, and this one is not known here yet: try again.",
    ),
    "credential_revoked": Kind(401, _BAD, "client", False, "The credential of this call was revoked while it ran."),
    "keys_unchecked": Kind(
        503,
        "service_unavailable_error",
        "gateway",
        True,
        "Weir cannot learn at this moment which credentials have been revoked.",
    ),
    "address_not_allowed": Kind(403, _BAD, "client", False, "This API key may not be used from this address."),
    "tenant_mismatch": Kind(403, _BAD, "client", False, "The credential does not belong to the tenant asked for."),
    "tenant_required": Kind(
        403, _BAD, "client", False, "This credential is of several tenants: say which one in X-Tenant-ID."
    ),
    # identify, tokens: what is wrong is said, what would be right is between the client and its identity provider
    "token_too_large": Kind(401, _BAD, "client", False, "The token is larger than {} bytes."),
    "token_malformed": Kind(401, _BAD, "client", False, "The token cannot be read: {}."),
    "token_issuer": Kind(401, _BAD, "client", False, "The token is not from an issuer that is trusted here."),
    "token_algorithm": Kind(401, _BAD, "client", False, "The token is not signed in a way that is accepted here."),
    "token_type": Kind(401, _BAD, "client", False, "The token is not of a type that is accepted here."),
    "token_key": Kind(401, _BAD, "client", False, "The token is not signed with a key that its issuer has published."),
    "token_signature": Kind(401, _BAD, "client", False, "The token's signature is not its issuer's."),
    "token_audience": Kind(401, _BAD, "client", False, "The token is meant for another audience."),
    "token_claim": Kind(401, _BAD, "client", False, "The token lacks the claim {}, or it is not what it should be."),
    "token_expired": Kind(401, _BAD, "client", False, "The token has expired."),
    "token_not_yet_valid": Kind(401, _BAD, "client", False, "The token is not valid yet."),
    "token_revoked": Kind(401, _BAD, "client", False, "The user of this token may no longer call."),
    "email_not_allowed": Kind(
        403, _BAD, "client", False, "The token does not prove an e-mail address that may call here."
    ),
    "issuer_unavailable": Kind(
        503,
        "service_unavailable_error",
        "gateway",
        True,
        "Weir cannot ask the token's issuer for its keys at this moment.",
    ),
    # authorise
    "endpoint_not_allowed": Kind(403, _BAD, "client", False, "This API key may not use the endpoint {}."),
    "model_not_found": Kind(404, _BAD, "client", False, "The model {} does not exist or you do not have access to it."),
    "model_not_at_endpoint": Kind(404, _BAD, "client", False, "The model {} is not served at this endpoint."),
    "tenant_suspended": Kind(403, _BAD, "client", False, "This account is suspended."),
    # admit
    "rate_limit_exceeded": Kind(429, "requests", "client", True, "Rate limit reached: {}."),
    "token_limit_exceeded": Kind(429, "tokens", "client", True, "Rate limit reached: {}."),
    "concurrency_exceeded": Kind(429, "requests", "client", True, "Too many requests at the same time: {}."),
    "request_too_large": Kind(429, "tokens", "client", False, "This request can never pass the token limit: {}."),
    "journal_full": Kind(
        503, "service_unavailable_error", "gateway", True, "Weir cannot record more calls at this moment."
    ),
    "limits_full": Kind(
        503, "service_unavailable_error", "gateway", True, "Weir cannot track more limits at this moment."
    ),
    "not_ready": Kind(503, "service_unavailable_error", "gateway", True, "Weir is not ready: {}."),
    "store_unavailable": Kind(
        503, "service_unavailable_error", "gateway", True, "Weir cannot check this key at this moment."
    ),
    # route and stream: before the first byte only
    "upstream_overloaded": Kind(
        503, "service_unavailable_error", "gateway", True, "Too many calls are waiting for the model's upstream."
    ),
    "upstream_unreachable": Kind(502, "server_error", "upstream", True, "The model's upstream cannot be reached."),
    "upstream_connect_timeout": Kind(
        504, "server_error", "upstream", True, "The model's upstream did not accept a connection in time."
    ),
    "upstream_timeout": Kind(504, "server_error", "upstream", False, "The model's upstream did not answer in time."),
    "upstream_lost": Kind(
        502, "server_error", "upstream", False, "The model's upstream closed the connection before it answered."
    ),
    "upstream_protocol": Kind(502, "server_error", "upstream", False, "The model's upstream sent a bad answer: {}."),
    "upstream_refused_us": Kind(
        502, "server_error", "upstream", False, "The model's upstream refused Weir's own credentials."
    ),
    "upstream_busy": Kind(429, "requests", "upstream", True, "The model's upstream is rate limiting Weir."),
    "upstream_unavailable": Kind(
        503, "service_unavailable_error", "upstream", True, "The model's upstream is overloaded."
    ),
    "upstream_failed": Kind(502, "server_error", "upstream", True, "The model's upstream failed with status {}."),
    "upstream_refused": Kind(502, "server_error", "upstream", False, "The model's upstream answered with status {}."),
    # anything else
    "internal_error": Kind(500, "server_error", "gateway", False, "Weir failed to handle this request."),
}
