"""The admin API on the wire: who may speak, what is asked, and one answer for each.

A request is matched to its operation by its raw path, exactly; nothing after that looks at the path again. Every answer
is JSON, is not to be stored, and says nothing to other origins. Bodies are read after the caller is known.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncGenerator
from hashlib import sha256
from ipaddress import ip_address

import msgspec
from aiohttp import web

from proxy import bounds
from proxy.clock import wall_us
from proxy.control import on_facts, on_keys, on_people, openapi, reading
from proxy.control.callers import Caller
from proxy.control.office import Answer, Ask, Handler, Office, encode
from proxy.control.problems import Problem, problem_of
from proxy.control.table import Operation, find
from proxy.identity.actor import By
from proxy.store.store import ByOnce, Once, Repeated
from proxy.telemetry.log import Log

HANDLERS: dict[str, Handler] = {**on_keys.HANDLERS, **on_people.HANDLERS, **on_facts.HANDLERS}
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff", "server": "weir"}
_ONE_EACH = ("authorization", "host", "content-type", "idempotency-key", "if-match", "if-none-match")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_KEY = re.compile(rf"[\x21-\x7e]{{1,{bounds.IDEMPOTENCY_KEY_BYTES_MAX}}}")


class _Connection(web.RequestHandler):
    """One connection. aiohttp waits for ever for a request's head; here it has a bound, as the body has."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._manager.connections if self._manager else ()) > bounds.CONTROL_CONNECTIONS_MAX:
            transport.close()
            return
        self._timer = self._loop.call_later(bounds.HEADERS_SECONDS_MAX, transport.close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.spoke()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What the parser could not read is answered as everything is, and nothing of it is repeated."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        problem = _unreadable() if status < 500 else _internal()
        response = _response(problem.status, problem.body())
        response.force_close()
        return response

    def spoke(self) -> None:
        """Its first request is here; from now on the bound on idle connections holds."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Port:
    """The control port. `open` takes a bound socket."""

    def __init__(self, office: Office, log: Log) -> None:
        self._office = office
        self._log = log
        self._hosts = {"localhost", *(name.lower() for name in office.settings.control.hosts)}
        self._document = openapi.encode()
        self._runner: web.ServerRunner | None = None

    async def open(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begins to answer."""
        server = _Server(self._serve, access_log=None, keepalive_timeout=bounds.CONNECTION_IDLE_SECONDS_MAX)
        self._runner = web.ServerRunner(server, shutdown_timeout=2.0)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=tls).start()

    async def close(self) -> None:
        """Lets what is under way end, within a bound, and stops."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def connections(self) -> list[web.RequestHandler]:
        """Those that are open."""
        server = None if self._runner is None else self._runner.server
        return [] if server is None else list(server.connections)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request.protocol, _Connection):
            request.protocol.spoke()
        operation: Operation | None = None
        try:
            operation, names = self._matched(request)
            if operation.id == "get_document":
                return _response(200, self._document)
            return await self._run(request, operation, names)
        except Exception as error:
            action = "" if operation is None else operation.action or "do that"
            problem = problem_of(error, action)
            if problem is None:
                # Its name and place alone: what it holds may be somebody's secret.
                self._log.error(f"internal error: {type(error).__name__} in {operation.id if operation else '-'}")
                problem = _internal()
            response = _response(problem.status, problem.body(), problem.headers)
            if not request.content.at_eof():
                response.force_close()  # a body that nobody will read
            return response

    def _matched(self, request: web.BaseRequest) -> tuple[Operation, dict[str, str]]:
        """The operation. Raises Problem for a request that is odd, or nobody's."""
        for name in _ONE_EACH:
            if len(request.headers.getall(name, ())) > 1:
                raise Problem(400, "bad_header", f"The header {name} stands more than once.")
        encoding = request.headers.get("transfer-encoding")
        if encoding is not None and encoding.strip().lower() != "chunked":
            raise Problem(400, "bad_header", "The only transfer-encoding that is taken is chunked.")
        host = _HOST.fullmatch(request.headers.get("host", ""))
        if host is None or not self._ours(host[1].lower()):
            text = "Not a host of this server; add it to control.hosts if it is."
            raise Problem(421, "misdirected", text)
        path = request.raw_path.partition("?")[0]
        found = find(request.method, path)
        if found[0] is None:
            if found[1]:
                allow = {"allow": ", ".join(found[1])}
                raise Problem(405, "method_not_allowed", f"Takes {allow['allow']}.", headers=allow)
            raise Problem(404, "not_found", "There is no such thing here, or it is not yours to see.")
        return found

    def _ours(self, host: str) -> bool:
        """A name that was rebound to this address by somebody else's DNS is none of ours; an address cannot be."""
        if host in self._hosts:
            return True
        try:
            ip_address(host.strip("[]"))
        except ValueError:
            return False
        return True

    async def _run(self, request: web.BaseRequest, operation: Operation, names: dict[str, str]) -> web.StreamResponse:
        office, headers = self._office, request.headers
        peer = request.remote or "unix"
        authorization = headers.get("authorization")
        caller = None
        if not operation.open or authorization is not None:
            caller = await office.callers.who(authorization, peer)
            if operation.method != "GET":
                office.callers.changes.note(caller.actor)
        query = reading.query(request.raw_path.partition("?")[2], operation.query)
        match, fresh = _precondition(operation, request)
        raw = await _read(request, operation)
        body = None if operation.body is None else reading.body(raw, operation.body)
        once = _once(operation, caller, headers.get("idempotency-key"), request, raw)
        by = None
        if caller is not None:
            by = By(caller.actor, peer) if once is None else ByOnce(caller.actor, peer, once)
        ask = Ask(operation, names, caller, peer, query=query, body=body, match=match, fresh=fresh, once=once, by=by)
        try:
            answer = await HANDLERS[operation.id](office, ask)
        except Repeated as repeated:
            await office.desk.tell_again()
            return _response(operation.status, repeated.answer, {"idempotency-replayed": "true"})
        if answer.lines is not None:
            return await self._stream(request, answer.lines)
        more = {} if answer.etag is None else {"etag": f'"{answer.etag}"'}
        return _response(operation.status, encode(answer.said), more)

    async def _stream(self, request: web.BaseRequest, lines: AsyncGenerator[bytes, None]) -> web.StreamResponse:
        """Writes JSON lines. What goes wrong after the first byte ends the connection without its last chunk."""
        try:
            first = await anext(lines, b"")
            response = web.StreamResponse(headers={**_HEADERS, "content-type": "application/jsonl"})
            await response.prepare(request)
            try:
                await _write(response, first)
                async for part in lines:
                    await _write(response, part)
                await response.write_eof()
            except Exception as error:
                if not isinstance(error, (ConnectionError, TimeoutError)):
                    self._log.error(f"an export broke off: {type(error).__name__}")
                if request.transport is not None:
                    request.transport.abort()
            return response
        finally:
            await lines.aclose()


def _unreadable() -> Problem:
    return Problem(400, "bad_request", "The head of the request cannot be read.")


def _internal() -> Problem:
    return Problem(500, "internal_error", "Something went wrong here; the log has its name.")


async def _write(response: web.StreamResponse, part: bytes) -> None:
    """A reader that stands still holds the database no longer than a body may take."""
    async with asyncio.timeout(bounds.CONTROL_SECONDS_MAX):
        await response.write(part)


def _precondition(operation: Operation, request: web.BaseRequest) -> tuple[str | None, bool]:
    """(If-Match, whether If-None-Match says that there is nothing yet). Raises Problem where one of them is needed."""
    match = reading.etag(request.headers.get("if-match"), "If-Match")
    fresh = request.headers.get("if-none-match", "").strip() == "*" and operation.method == "PUT"
    if operation.match and match is None and not fresh:
        text = "Say what you last saw of it: If-Match with its ETag" + (
            ", or If-None-Match: * where there is nothing yet." if operation.method == "PUT" else "."
        )
        raise Problem(428, "precondition_required", text)
    return match, fresh


async def _read(request: web.BaseRequest, operation: Operation) -> bytes:
    """The body, within its bounds. Raises Problem."""
    length = request.content_length
    if operation.body is None:
        if request.can_read_body and length != 0:
            raise Problem(400, "unexpected_body", "This operation takes no body.")
        return b""
    if request.headers.get("content-encoding"):
        raise Problem(415, "unsupported_media_type", "A body is taken as it is, without a content-encoding.")
    if not request.can_read_body or length == 0:
        return b""
    reading.media_type(request.headers.get("content-type"))
    too_large = Problem(413, "body_too_large", f"At most {bounds.CONTROL_BODY_BYTES_MAX} bytes.")
    if length is not None and length > bounds.CONTROL_BODY_BYTES_MAX:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(bounds.CONTROL_SECONDS_MAX):
            async for part in request.content.iter_any():
                size += len(part)
                if size > bounds.CONTROL_BODY_BYTES_MAX:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "body_too_slow", f"The body took longer than {bounds.CONTROL_SECONDS_MAX} s.") from None
    return b"".join(parts)


def _once(
    operation: Operation, caller: Caller | None, key: str | None, request: web.BaseRequest, raw: bytes
) -> Once | None:
    if key is None:
        return None
    if not operation.once or caller is None:
        raise Problem(400, "bad_header", "This operation takes no Idempotency-Key.")
    if not _KEY.fullmatch(key):
        text = f"An Idempotency-Key has 1 to {bounds.IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters."
        raise Problem(400, "bad_header", text)
    actor = caller.actor
    who = msgspec.json.encode((actor.kind, actor.id, actor.tenant)).decode()
    asked = sha256(request.raw_path.encode("utf-8", "surrogateescape") + b"\0" + raw).digest()
    return Once(who, operation.id, key, asked, wall_us())


def _response(status: int, body: bytes, more: dict[str, str] | None = None) -> web.Response:
    headers = {**_HEADERS, **(more or {})}
    if body:
        headers["content-type"] = "application/json"
    return web.Response(status=status, body=body, headers=headers)


__all__ = ["HANDLERS", "Answer", "Port"]
