"""How many tokens an image has: its size from the header of its `data:` url, then its family's rule. Pure.

Nothing is refused here and nothing is decoded but a few bytes of a header: an image that cannot be read, or that stands
behind a remote url, counts as much as one of its family can.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from proxy.bounds import IMAGE_SEGMENTS_MAX, IMAGE_UNESCAPED_BYTES_MAX
from proxy.tokens.families import Images, Patches, Tiles

if TYPE_CHECKING:
    Read = Callable[[int, int], bytes]  # (offset, bytes) of the decoded image; shorter or empty at its end

_MARK = b";base64,"
_LOOKED_AT_BYTES = 4096  # for a first escape
_PREFIX_BYTES_MAX = 128  # `data:image/svg+xml;charset=utf-8;base64,` and more


class Size(NamedTuple):
    """In pixels, as stored: an EXIF rotation swaps the two, which no rule minds."""

    width: int
    height: int


def tokens(rule: Images, detail: str, size: Size | None) -> int:
    """The tokens of one image of that size, None for an image that cannot be seen."""
    if isinstance(rule, Tiles):
        return _tiles(rule, detail, size)
    return _patches(rule, detail, size)


def _tiles(rule: Tiles, detail: str, size: Size | None) -> int:
    if detail == "low":
        return rule.base
    # The longest image that fits has its short side at `short` and its long one at `fit`.
    fitted: tuple[float, float] = size or (rule.fit, rule.short)
    fitted = _within(*fitted, rule.fit, max(fitted))
    width, height = _within(*fitted, rule.short, min(fitted))
    return rule.base + rule.tile * (ceil(width / rule.square) * ceil(height / rule.square))


def _within(width: float, height: float, bound: int, side: float) -> tuple[float, float]:
    """Both sides, scaled so that `side` is at most the bound. Nothing is enlarged."""
    if side <= bound:
        return width, height
    return width * bound / side, height * bound / side


def _patches(rule: Patches, detail: str, size: Size | None) -> int:
    budget = rule.details.get(detail) or rule.details["auto"]  # type: ignore[call-overload]
    if size is None:
        if budget.patches is None:
            assert rule.remote_tokens is not None
            return rule.remote_tokens
        return _times(budget.patches, rule.multiplier_milli)
    width, height = _within(*size, budget.side, max(size))
    patches = ceil(width / rule.square) * ceil(height / rule.square)
    if budget.patches is not None and patches > budget.patches:
        patches = _shrunk(width, height, rule.square, budget.patches)
    return _times(patches, rule.multiplier_milli)


def _shrunk(width: float, height: float, square: int, patches_max: int) -> int:
    """The patches of an image that was scaled into the budget, so that one side is a whole number of them."""
    scale = sqrt(square * square * patches_max / (width * height))
    across, down = width * scale / square, height * scale / square
    if across < 1 or down < 1:  # a strip thinner than a patch: as many as there may be
        return patches_max
    scale *= min(floor(across) / across, floor(down) / down)
    # The guide's own example comes to whole patches but for the noise of floating point.
    return min(patches_max, _covering(width * scale, square) * _covering(height * scale, square))


def _covering(side: float, square: int) -> int:
    return ceil(side / square - 1e-6)


def _times(patches: int, multiplier_milli: int) -> int:
    return -(-patches * multiplier_milli // 1000)


def size_of(body: bytes, start: int, end: int) -> Size | None:
    """The size that the header of the `data:` url at body[start:end] gives; the inside of a JSON string. None for a
    remote url, another form than base64, a format other than PNG, JPEG, GIF or WebP, and a header that is broken.
    """
    if body.find(b"\\", start, min(end, start + _LOOKED_AT_BYTES)) >= 0:
        # Some writers of JSON escape every slash, one in 64 characters of base64.
        body = _unescaped(body, start, end)
        start, end = 0, len(body)
    if body[start : start + 5].lower() != b"data:":
        return None
    mark = body.find(_MARK, start, min(end, start + _PREFIX_BYTES_MAX))
    if mark < 0:
        return None
    first = mark + len(_MARK)

    def read(offset: int, count: int) -> bytes:
        """Decodes just those bytes: four characters of base64 are three of them."""
        group = offset // 3
        groups = (offset + count + 2) // 3 - group
        at = first + group * 4
        text = body[at : min(end, at + groups * 4)]
        try:
            return binascii.a2b_base64(text)[offset - group * 3 :][:count]
        except binascii.Error:
            return b""

    size = _size(read)
    return size if size is not None and size.width > 0 and size.height > 0 else None


def _unescaped(body: bytes, start: int, end: int) -> bytes:
    """The beginning of a JSON string as it is meant."""
    text = body[start : min(end, start + IMAGE_UNESCAPED_BYTES_MAX)]
    if len(text) < end - start:  # the cut may be inside of an escape, at most a pair of surrogates
        text = text[: text.rfind(b"\\", 0, len(text) - 12)]
    try:
        return msgspec.json.decode(b'"%s"' % text, type=str).encode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return b""


def _size(read: Read) -> Size | None:
    head = read(0, 30)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR" and len(head) >= 24:
        return Size(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    if head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 10:
        return Size(int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        return _webp(head)
    if head[:2] == b"\xff\xd8":
        return _jpeg(read)
    return None


def _webp(head: bytes) -> Size | None:
    """Lossy, lossless and extended (RFC 9649)."""
    if head[12:16] == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return Size(int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF)
    if head[12:16] == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if head[12:16] == b"VP8X":
        return Size(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1)
    return None


def _jpeg(read: Read) -> Size | None:
    """Steps from segment to segment until the frame's header (ITU-T T.81, B.2.2), wherever a camera's notes put it."""
    at = 2
    for _ in range(IMAGE_SEGMENTS_MAX):
        segment = read(at, 9)
        if len(segment) < 9 or segment[0] != 0xFF:
            return None
        marker = segment[1]
        if marker == 0xFF:  # a byte of padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return Size(int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big"))
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these have no length
            at += 2
        elif marker in (0xD9, 0xDA):  # the end, or the picture itself, before any frame
            return None
        else:
            at += 2 + int.from_bytes(segment[2:4], "big")
    return None
