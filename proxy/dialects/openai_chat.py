"""OpenAI's wire protocol: endpoints, the error object, the model list. Bytes and facts; no I/O.

Sources: openai-openapi (`Error`, `ListModelsResponse`), openai-python `_base_client.py` for what the SDK obeys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from proxy.bounds import ENDPOINT_BYTES_MAX
from proxy.errors import Refusal


class Endpoint(NamedTuple):
    """One path a client may ask for. `suffix` follows the upstream's base url; "" means Weir answers itself.

    `judged`: the endpoints of which the key must be allowed one, where that is not this one itself.
    """

    name: str
    method: str
    suffix: str
    judged: tuple[str, ...] = ()


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Endpoint("chat.completions", "POST", "/chat/completions"),
    "/v1/completions": Endpoint("completions", "POST", "/completions"),
    "/v1/embeddings": Endpoint("embeddings", "POST", "/embeddings"),
    "/v1/models": Endpoint("models", "GET", ""),
    "/v1/tokenize": Endpoint("tokenize", "POST", "", ("chat.completions", "completions", "embeddings")),
    "/healthz": Endpoint("health", "GET", ""),
    "/readyz": Endpoint("health", "GET", ""),
}
assert all(len(endpoint.name) <= ENDPOINT_BYTES_MAX for endpoint in ENDPOINTS.values())
MODEL_PREFIX = "/v1/models/"
MODEL = Endpoint("models", "GET", "")

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def answer(status: int, headers: str, body: bytes, *, close: bool, content_type: str = "application/json") -> bytes:
    """A whole HTTP/1.1 answer of Weir's own. `headers` are lines that end in CRLF."""
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\n"
        f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n{headers}"
        f"{'connection: close' + chr(13) + chr(10) if close else ''}\r\n"
    )
    return head.encode("latin-1") + body


def refusal_body(refusal: Refusal) -> bytes:
    """OpenAI's error object; all four keys are always there."""
    kind = refusal.kind
    return json.dumps(
        {
            "error": {
                "message": refusal.message,
                "type": kind.type,
                "param": refusal.param,
                "code": refusal.code,
            }
        }
    ).encode()


def error_frame(refusal: Refusal) -> bytes:
    """The last frame of a stream that Weir ends: the official SDKs raise it as an APIError (openai-python,
    `_streaming.py`, `__stream__`). No `[DONE]` follows it: the answer is not done.
    """
    return b"data: %b\n\n" % refusal_body(refusal)


def refusal_headers(refusal: Refusal) -> str:
    """Whose fault, and whether to retry. A delay is given in both forms that the SDKs read, ms first."""
    kind = refusal.kind
    lines = f"x-weir-error: {kind.fault}\r\nx-should-retry: {'true' if kind.retry else 'false'}\r\n"
    if refusal.retry_after_ms > 0:
        seconds = -(-refusal.retry_after_ms // 1000)
        lines += f"retry-after-ms: {refusal.retry_after_ms}\r\nretry-after: {seconds}\r\n"
    return lines


def model_object(name: str, created: int) -> dict[str, object]:
    """One entry of the model list."""
    return {"id": name, "object": "model", "created": created, "owned_by": "weir"}


def model_list(names: Iterable[str], created: int) -> bytes:
    """The body of GET /v1/models."""
    return json.dumps({"object": "list", "data": [model_object(name, created) for name in names]}).encode()


def model_body(name: str, created: int) -> bytes:
    """The body of GET /v1/models/{id}."""
    return json.dumps(model_object(name, created)).encode()
