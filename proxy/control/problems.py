"""What an answer that is no success says, and which failure of a writer is which."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from proxy.audit.chain import NotRecordable
from proxy.control.nouns import Error, ErrorBody
from proxy.errors import Refusal
from proxy.identity.fields import Wrong
from proxy.identity.roles import Forbidden, ForbiddenTold
from proxy.store.store import Absent, BadData, NotDone, OtherRequest, Stale, StoreUnavailable

_RETRY = {"retry-after": "1"}


class Problem(Exception):
    """An answer that is no success. `path` is the JSON path of the field at fault."""

    def __init__(
        self, status: int, code: str, message: str, path: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.path = path
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The answer's JSON."""
        return msgspec.json.encode(Error(ErrorBody(code=self.code, message=self.message, path=self.path)))


def not_found() -> Problem:
    """One and the same for what is not there and for what is somebody else's."""
    return Problem(404, "not_found", "There is no such thing here, or it is not yours to see.")


def forbidden(action: str) -> Problem:
    """Says what was judged, and nothing of the thing it was aimed at."""
    return Problem(403, "forbidden", f"This credential may not {action} there.")


def invalid(message: str, path: str) -> Problem:
    """A field that cannot be as it is."""
    return Problem(422, "invalid", message, path)


def problem_of(error: Exception, action: str) -> Problem | None:
    """The answer to a failure of a writer or reader; None for one that nobody foresaw."""
    match error:
        case Problem():
            return error
        case ForbiddenTold():
            return Problem(403, "forbidden", f"{error}.")
        case Forbidden():
            return forbidden(action)
        case Absent():
            return not_found()
        case Stale():
            return Problem(412, "changed_meanwhile", "It is no longer as you last saw it: get it again.")
        case OtherRequest():
            text = "This Idempotency-Key stands for another request; take a new one."
            return Problem(409, "idempotency_mismatch", text)
        case NotDone():
            return Problem(409, "conflict", str(error))
        case BadData():
            return Problem(
                409, "conflict", "The database refuses it: something of that name exists, or a value is odd."
            )
        case Wrong() | NotRecordable():
            text = str(error)
            path = text.partition(":")[0].partition(" ")[0]
            return Problem(422, "invalid", text, path if path.startswith("$") else "$")
        case StoreUnavailable():
            return Problem(503, "store_unavailable", "The database did not answer; try again.", headers=_RETRY)
        case Refusal():
            status = 401 if error.kind.status == 403 else error.kind.status
            return Problem(status, error.code, "The token was refused.", headers=_RETRY if status == 503 else None)
        case _:
            return None
