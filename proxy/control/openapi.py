"""The OpenAPI 3.1 document of the admin API, made of the table of operations and their Structs. Pure."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from proxy import __version__
from proxy.control.nouns import Error
from proxy.control.table import OPERATIONS, PREFIX, Operation

_REF = "#/components/schemas/{name}"
_SECURITY: list[dict[str, list[str]]] = [{"session_or_service_key": []}]
_PROBLEMS = {
    400: "Malformed: a header, a cursor, the JSON itself",
    401: "No credential, or one that opens nothing here",
    403: "The credential may not do this there",
    404: "No such thing, or not the caller's to see",
    408: "The body came too slowly",
    409: "Cannot be done as things stand, or the Idempotency-Key stands for another request",
    412: "Changed since it was last seen",
    413: "The body is too large",
    414: "The query is too long",
    415: "The body is not JSON",
    421: "Another server's name",
    422: "A field is not as it must be; `path` says which",
    428: "If-Match is missing",
    429: "Too many bad credentials from this address, or too many changes by this tenant; Retry-After says how long",
    503: "The database did not answer",
}


def document() -> dict[str, Any]:
    """The whole document."""
    kinds = [kind for one in OPERATIONS for kind in (one.query, one.body, one.answer) if kind is not None]
    _, schemas = msgspec.json.schema_components([*dict.fromkeys(kinds), Error], ref_template=_REF)
    queries = {one.query.__name__: schemas[one.query.__name__] for one in OPERATIONS if one.query is not None}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        item = paths.setdefault(PREFIX + operation.path, {})
        item[operation.method.lower()] = _operation(operation, queries)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Weir admin API",
            "version": __version__,
            "description": "Made by `python -m proxy.control.document` from the table of operations; do not edit.",
        },
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in schemas.items() if name not in queries},
            "securitySchemes": {
                "session_or_service_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A session's token, or an API key with rights of its own.",
                }
            },
        },
        "security": _SECURITY,
    }


def encode() -> bytes:
    """The document as it is served and kept in docs/."""
    return (json.dumps(document(), indent=1, ensure_ascii=False) + "\n").encode()


def _operation(operation: Operation, queries: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.segments[0].removesuffix(".json")],
    }
    if operation.action is not None:
        said["description"] = f"Judged as `{operation.action}`."
    if operation.open:
        said["security"] = [{}, *_SECURITY] if operation.id == "redeem_invite" else [{}]
    parameters = [*_path(operation), *_query(operation, queries), *_headers(operation)]
    if parameters:
        said["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": _REF.format(name=operation.body.__name__)}
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    said["responses"] = {str(operation.status): _success(operation), **_failures(operation)}
    return said


def _path(operation: Operation) -> list[dict[str, Any]]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9_.~-]{1,64}$"}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in operation.names]


def _query(operation: Operation, queries: dict[str, Any]) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    schema = queries[operation.query.__name__]
    required = set(schema.get("required", ()))
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _present(one)}
        for name, one in schema["properties"].items()
    ]


def _present(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what may be left out is left out."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(kinds) == 1:
        schema = {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}
    return {name: value for name, value in schema.items() if not (name == "default" and value is None)}


def _headers(operation: Operation) -> list[dict[str, Any]]:
    found = []
    if operation.match:
        found.append(_header("If-Match", "The ETag of what was last seen of it.", operation.method != "PUT"))
    if operation.match and operation.method == "PUT":
        found.append(_header("If-None-Match", "`*`: there is nothing yet.", False, "^\\*$"))
    if operation.once:
        text = "A name of your choice for this request: sent again within a day, it is not done again."
        found.append(_header("Idempotency-Key", text, False, "^[!-~]{1,255}$"))
    return found


def _header(name: str, text: str, required: bool, pattern: str = '^"[!#-~]{1,128}"$') -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": required, "description": text, "schema": schema}


def _success(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {"description": "Done" if operation.status == 204 else "The answer"}
    if operation.etag:
        found["headers"] = {"ETag": {"schema": {"type": "string"}}}
    if operation.once:
        replayed = {"description": "`true`: an answer that was given before.", "schema": {"type": "string"}}
        found.setdefault("headers", {})["Idempotency-Replayed"] = replayed
    if operation.lines:
        found["content"] = {"application/jsonl": {"schema": {"type": "string"}}}
    elif operation.answer is not None:
        found["content"] = {"application/json": {"schema": {"$ref": _REF.format(name=operation.answer.__name__)}}}
    elif operation.id == "get_document":
        found["content"] = {"application/json": {"schema": {"type": "object"}}}
    return found


def _failures(operation: Operation) -> dict[str, Any]:
    codes = {400, 421}
    if operation.id != "get_document":
        codes |= {401, 403, 404, 422, 429, 503}
    if operation.body is not None:
        codes |= {408, 413, 415}
    if operation.query is not None:
        codes |= {414}
    if operation.method != "GET":
        codes |= {409}
    if operation.match:
        codes |= {412, 428}
    schema = {"$ref": _REF.format(name="Error")}
    return {
        str(code): {"description": _PROBLEMS[code], "content": {"application/json": {"schema": schema}}}
        for code in sorted(codes)
    }
