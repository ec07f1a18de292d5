"""Sizes of images from their headers, and the tokens that the guides give for those sizes."""

from __future__ import annotations

import base64
import binascii
import random
import struct
import zlib

import pytest

from proxy.bounds import IMAGE_SEGMENTS_MAX
from proxy.tokens import families, images
from proxy.tokens.families import Budget, Patches, Tiles
from proxy.tokens.images import Size


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"IDAT"


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b";" * 20


def webp(kind: bytes, data: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def webp_lossy(width: int, height: int) -> bytes:
    return webp(b"VP8 ", b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width | 0x4000, height) + b"\x00" * 8)


def webp_lossless(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\x00" * 8)


def webp_extended(width: int, height: int) -> bytes:
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return webp(b"VP8X", b"\x10\x00\x00\x00" + sides + b"\x00" * 8)


def jpeg(width: int, height: int, notes: int = 0, frame: int = 0xC0) -> bytes:
    """A JPEG with so many segments of a camera's notes in front of its frame."""
    note = b"\xff\xe1" + struct.pack(">H", 65_535) + b"\x01" * 65_533
    restart = b"\xff\xff\xff\xd0"  # padding, and a marker without a length
    head = b"\xff" + bytes([frame]) + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x01\x22\x00" * 3
    return b"\xff\xd8" + note * notes + restart + head + b"\xff\xda" + b"\x00" * 50


def url(data: bytes, kind: str = "image/png") -> bytes:
    return f"data:{kind};base64,".encode() + base64.b64encode(data)


def size_of(text: bytes) -> Size | None:
    """As it stands in a body: something on both sides."""
    return images.size_of(b'{"url":"' + text + b'"}', 8, 8 + len(text))


MAKERS = [png, gif, webp_lossy, webp_lossless, webp_extended, jpeg]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_each_format(make: object) -> None:
    """Each format's header gives the size, whatever the url says it is, and with slashes escaped too."""
    for width, height in ((1, 1), (640, 480), (16_383, 1), (1, 16_383), (255, 256)):
        data = make(width, height)  # type: ignore[operator]
        for text in (url(data), url(data, "image/jpeg"), url(data, "IMAGE/PNG;name=a.b"), b"DATA" + url(data)[4:]):
            assert size_of(text) == (width, height)
            assert size_of(text.replace(b"/", b"\\/").replace(b"image\\/", b"image/")) == (width, height)


def test_jpeg_frames_wherever_they_are() -> None:
    """Behind hundreds of kilobytes of a camera's notes, and in each kind of frame; not in what only looks like one."""
    for notes in (0, 1, 2, 3, 10):
        assert size_of(url(jpeg(4000, 3000, notes))) == (4000, 3000)
    for frame in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)):
        assert size_of(url(jpeg(40, 30, frame=frame))) == (40, 30)
    for frame in (0xC4, 0xC8, 0xCC, 0xDB):
        assert size_of(url(jpeg(40, 30, frame=frame))) is None
    assert size_of(url(b"\xff\xd8" + b"\xff\xe0\x00\x02" * (IMAGE_SEGMENTS_MAX + 1) + jpeg(4, 3)[2:])) is None


def test_what_cannot_be_seen() -> None:
    """Remote urls, other formats and forms, and sizes of nothing have no size; nothing is refused."""
    for text in (
        b"",
        b"https://example.com/a.png",
        b"data:",
        b"data:image/png," + base64.b64encode(png(1, 1)),
        b"data:image/png;base64,",
        b"data:image/png;base64,!!!!",
        b"data:image/png;base64,iVBORw0KGg",
        b"data:" + b"x" * 500 + b";base64," + base64.b64encode(png(1, 1)),
        url(b"<svg width='10' height='10'/>"),
        url(png(0, 5)),
        url(png(5, 0)),
        url(webp(b"VP8 ", b"\x00" * 20)),
        url(webp(b"VP8L", b"\x00" * 20)),
        url(webp(b"ALPH", b"\x00" * 20)),
    ):
        assert size_of(text) is None, text[:60]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_cut_and_damaged(make: object) -> None:
    """A header cut anywhere gives its size or none; damage never raises."""
    data = make(640, 480)  # type: ignore[operator]
    text = url(data)
    for end in range(len(text)):
        assert size_of(text[:end]) in (None, (640, 480))
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(2000):
        broken = bytearray(text)
        for _ in range(chance.randrange(1, 6)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        found = size_of(bytes(broken))
        assert found is None or min(found) > 0, seed


def test_little_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of megabytes only headers are decoded: here, below a kilobyte."""
    decoded = []
    real = binascii.a2b_base64
    monkeypatch.setattr(binascii, "a2b_base64", lambda text: decoded.append(len(text)) or real(text))
    for data in (png(9, 9) + b"\x00" * 8_000_000, jpeg(9, 9, notes=10) + b"\x00" * 8_000_000, b"\x00" * 8_000_000):
        decoded.clear()
        size_of(url(data))
        assert sum(decoded) < 1000


GPT_4O = families.known().by_name["gpt-4o"].images


@pytest.mark.parametrize(
    ("size", "detail", "tokens"),
    [
        # The guide's worked examples.
        (Size(1024, 1024), "high", 765),
        (Size(2048, 4096), "high", 1105),
        (Size(4096, 8192), "low", 85),
        # Around the edges of a tile and of both fits, in both directions.
        (Size(512, 512), "high", 255),
        (Size(513, 512), "high", 425),
        (Size(1, 1), "auto", 255),
        (Size(2048, 768), "auto", 85 + 170 * 8),
        (Size(768, 2048), "auto", 85 + 170 * 8),
        (Size(2049, 100), "auto", 85 + 170 * 4),
        (Size(100_000, 1), "auto", 85 + 170 * 4),
        (None, "auto", 1445),
        (None, "low", 85),
    ],
)
def test_tiles(size: Size | None, detail: str, tokens: int) -> None:
    """The arithmetic of tiles."""
    assert GPT_4O is not None
    assert images.tokens(GPT_4O, detail, size) == tokens


def test_nothing_has_more_tiles_than_what_cannot_be_seen() -> None:
    """A remote image counts as the worst case: no size gives more."""
    rule = GPT_4O
    assert isinstance(rule, Tiles)
    worst = images.tokens(rule, "high", None)
    chance = random.Random(7)
    for _ in range(5000):
        size = Size(chance.randrange(1, 10_000), chance.randrange(1, 10_000))
        assert rule.base < images.tokens(rule, "high", size) <= worst, size


def test_patches() -> None:
    """The arithmetic of patches, on the examples of the guide when the budget was 1,536 patches."""
    rule = Patches(square=32, multiplier_milli=1000, details={"auto": Budget(side=10_000, patches=1536)})
    assert images.tokens(rule, "auto", Size(1024, 1024)) == 1024
    assert images.tokens(rule, "auto", Size(1800, 2400)) == 1452
    assert images.tokens(rule, "unknown", Size(1024, 1024)) == 1024
    assert images.tokens(rule, "high", None) == 1536
    times = Patches(square=32, multiplier_milli=1620, details={"auto": Budget(side=2048), "low": Budget(side=32)})
    assert images.tokens(times, "auto", Size(1024, 1024)) == 1659
    assert images.tokens(times, "auto", Size(4096, 4096)) == -(-4096 * 1620 // 1000)
    assert images.tokens(times, "low", Size(4096, 4096)) == 2


def test_no_patches_beyond_the_budget() -> None:
    """Any size stays in its budget, thin strips too, and is at least one token."""
    chance = random.Random(11)
    for name, family in families.known().by_name.items():
        rule = family.images
        if not isinstance(rule, Patches):
            continue
        for detail, budget in rule.details.items():
            for _ in range(500):
                size = Size(chance.choice([1, 31, 33, chance.randrange(1, 60_000)]), chance.randrange(1, 60_000))
                tokens = images.tokens(rule, detail, size)
                assert tokens >= 1
                if budget.patches is not None:
                    assert tokens <= -(-budget.patches * rule.multiplier_milli // 1000), (name, detail, size)
