"""The property's checker finds each kind of fault, and finds nothing where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.world.ledger import Seen, check

REQUEST = {"event": "request", "n": 1, "id": "a", "path": "/v1/chat/completions"}
END = {
    "event": "end",
    "n": 1,
    "how": "complete",
    "frames": 5,
    "bytes": 500,
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "usage_sent": True,
    "status": 200,
}
ROW = {
    "epoch": "e",
    "call": 1,
    "request_id": "a",
    "upstream_request_id": "up-1",
    "termination": "complete",
    "status": 200,
    "source": "provider",
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "relayed_frames": 5,
    "relayed_bytes": 500,
}
CUT = {"termination": "crash", "source": "estimated", "upstream_request_id": "", "relayed_frames": 3}
SEEN = Seen("complete", 200, 5, 500, 4)


def found(
    row: dict[str, Any] | None = None, end: dict[str, Any] | None = None, seen: Seen | None = SEEN, more: Any = ()
) -> list[str]:
    """Findings for one request whose row, end and client differ from the right ones as told."""
    return check([REQUEST, {**END, **(end or {})}], [{**ROW, **(row or {})}, *more], {"a": seen} if seen else None)


def test_the_truth_has_no_finding() -> None:
    """Aim: whole calls, cut calls and refused calls that agree give no finding."""
    assert found() == []
    assert found(seen=None) == []
    assert found(CUT, {"how": "client_gone"}, Seen("cut", 200, 3, 300)) == []
    assert found({**CUT, "relayed_frames": 0, "relayed_bytes": 0}, {"how": "client_gone"}, Seen("no_answer")) == []
    refused = {**ROW, "call": 2, "request_id": "b", "upstream_request_id": "", "relayed_bytes": 0}
    refused |= {"completion_tokens": 0, "relayed_frames": 0, "status": 502}
    assert check([REQUEST, END], [ROW, refused], {"a": SEEN, "b": Seen("refused", 502)}) == []


@pytest.mark.parametrize(
    ("row", "end", "seen", "says"),
    [
        ({"completion_tokens": 5}, {}, SEEN, "completion_tokens is 5, the upstream's is 4"),
        ({"prompt_tokens": 2}, {}, SEEN, "prompt_tokens is 2"),
        ({"source": "estimated"}, {}, SEEN, "is estimated, although the upstream sent its usage"),
        ({}, {"how": "reset"}, SEEN, "says complete, but the upstream's answer ended as reset"),
        ({"relayed_frames": 6}, {}, SEEN, "relayed_frames is 6, the upstream sent only 5"),
        ({"relayed_bytes": 501}, {}, SEEN, "relayed_bytes is 501, the upstream sent only 500"),
        (CUT, {"how": "client_gone"}, Seen("cut", 200, 4, 300), "relayed_frames is 3, the client received 4"),
        (CUT, {}, Seen("complete", 200, 5, 500), "relayed_frames is 3, the client received 5"),
        ({"relayed_bytes": 499}, {}, Seen("cut", 200, 5, 500), "relayed_bytes is 499, the client received 500"),
        ({}, {}, Seen("complete", 200, 4, 500), "the client received the whole answer and counts 4"),
        ({}, {}, Seen("complete", 200, 5, 500, 9), "the client read 9"),
        ({}, {}, Seen("refused", 503), "the client was refused with 503"),
    ],
)
def test_each_disagreement_is_found(row: dict[str, Any], end: dict[str, Any], seen: Seen, says: str) -> None:
    """Aim: tokens, frames, bytes, source and termination that disagree with a witness are each found."""
    findings = found(row, end, seen)
    assert any(says in finding for finding in findings), findings


def test_lost_doubled_invented_and_ghost_rows_are_found() -> None:
    """Aim: a missing row, a doubled row, a row nobody asked for and one the upstream never saw are found."""
    assert "lost" in check([REQUEST, END], [])[0]
    assert any("double" in finding for finding in found(more=[{**ROW, "call": 2}]))
    assert any("double" in finding for finding in found(more=[ROW]))
    assert any("requests upstream" in finding for finding in check([REQUEST, {**REQUEST, "n": 2}], []))
    ghost = {**ROW, "call": 2, "request_id": "z", "upstream_request_id": ""}
    assert any("invented" in finding for finding in found(more=[ghost], seen=None))
    assert any("nobody sent it" in finding for finding in found(more=[ghost]))
    assert "lost: the client of a" in check([], [], {"a": SEEN})[0]
    assert any("unfinished" in finding for finding in check([REQUEST], [ROW]))
