"""How a request's head is judged, read once more from the rules in `_front.pyi`, with strings instead of a machine.

A line is judged when its end has come; until then only its characters are.
"""

from __future__ import annotations

import re
from typing import Literal

from proxy.bounds import REQUEST_LINE_BYTES_MAX

Judged = tuple[int, int, bool, bool] | Literal[False] | None

LINE = re.compile(rb"(GET|POST) /[A-Za-z0-9._:/-]*\x20HTTP/1\.1")
NAME = re.compile(rb"[A-Za-z0-9_-]+")
VALUE = re.compile(rb"[\x20-\x7e\t]*")
NEVER = {b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"}


def judge(data: bytes) -> Judged:
    """What `_front.usual` must say of these bytes."""
    begun = data[:REQUEST_LINE_BYTES_MAX]
    end = begun.find(b"\r\n\r\n")
    lines = (begun if end < 0 else begun[:end]).split(b"\r\n")
    rest = lines.pop() if end < 0 else None
    if any(not fine(line) for line in lines[1:]) or (lines and not LINE.fullmatch(lines[0])):
        return False
    hosts = [value for name, value in map(field, lines[1:]) if name == b"host"]
    lengths = [value for name, value in map(field, lines[1:]) if name == b"content-length"]
    endings = [value.lower() for name, value in map(field, lines[1:]) if name == b"connection"]
    if any(name in NEVER for name, _ in map(field, lines[1:])) or max(map(len, (hosts, lengths, endings))) > 1:
        return False
    if not all(re.fullmatch(rb"[0-9]{1,15}", value) for value in lengths):
        return False
    if not set(endings) <= {b"close", b"keep-alive"}:
        return False
    if rest is not None:
        may = fine_so_far(rest) if lines else line_so_far(rest)
        return None if may and len(data) < REQUEST_LINE_BYTES_MAX else False
    if not hosts:
        return False
    length = int(lengths[0]) if lengths else 0
    post = lines[0].startswith(b"POST")
    return False if length and not post else (end + 4, length, post, endings == [b"close"])


def field(line: bytes) -> tuple[bytes, bytes]:
    """(name in lower case, value without the blanks around it) of a whole line."""
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" \t")


def fine(line: bytes) -> bool:
    """Whether a whole header line has only ordinary characters."""
    name, colon, value = line.partition(b":")
    return bool(NAME.fullmatch(name) and colon and VALUE.fullmatch(value))


def fine_so_far(line: bytes) -> bool:
    """The same of a line whose end has not come; its CR may have."""
    if line == b"\r" or (b":" not in line and re.fullmatch(rb"[A-Za-z0-9_-]*", line)):
        return True
    return fine(line.removesuffix(b"\r"))


def line_so_far(line: bytes) -> bool:
    """Whether this may be the beginning of an ordinary request line."""
    for method in (b"GET /", b"POST /"):
        if method.startswith(line):
            return True
        if line.startswith(method):
            return b" HTTP/1.1\r".startswith(re.sub(rb"\A[A-Za-z0-9._:/-]*", b"", line[len(method) :]))
    return False
