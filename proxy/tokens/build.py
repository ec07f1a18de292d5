"""Builds the file that an encoding is counted from: a head and a few arrays, mapped as they are. Build time only.

The format is one design with its reader, `proxy/_vocab.h`, which says what each part is for. All numbers are
little-endian. The same vocabulary gives the same bytes everywhere. Imports nothing that is not in Python itself;
`python -m proxy.tokens.build` builds both tables in place, in a few seconds.

Two facts about a vocabulary are relied upon and therefore checked here: each token is what byte-pair encoding makes of
its own bytes, and a merged pair's rank is above that of its two parts.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence

__all__ = ["UnfitVocabulary", "build"]

MAGIC = b"WEIRTOKN"
VERSION = 1
HEAD_BYTES = 4096
PATTERNS = {"cl100k_base": 0, "o200k_base": 1}  # which splitter a table is for: see _split.h
PAIR_LOAD, KEY_LOAD = 0.78, 0.6  # how full the hashed arrays may be: pairs have a filter before them
FILTER_BITS = 21
ID_BITS = 18
BLOCK = 128  # code points in one block of classes
CHARS = 0x10000
EMOJI, EMOJIS = 0x1F000, 0x1000  # code points beyond the first plane that are kept as characters
NONE = 0x7FFFFFFF  # no such pair, no such character
MASK = (1 << 64) - 1
MIX_A, MIX_B = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd, with well spread bits


class UnfitVocabulary(Exception):
    """The vocabulary cannot be counted by this scheme; the message is one sentence."""


def build(name: str, tokens: Sequence[bytes], classes: bytes) -> bytes:
    """The whole table of an encoding. `tokens` in the order of their ids, `classes` one byte a code point.

    Raises UnfitVocabulary.
    """
    if len(tokens) >= 1 << ID_BITS or not tokens:
        raise UnfitVocabulary(f"{name} has {len(tokens)} tokens; 1 to {(1 << ID_BITS) - 1} can be kept.")
    rank = {token: number for number, token in enumerate(tokens)}
    if len(rank) != len(tokens) or any(bytes((byte,)) not in rank for byte in range(256)):
        raise UnfitVocabulary(f"{name} names a token twice, or lacks one of the 256 single bytes.")
    pairs = _pairs(name, tokens, rank)
    pair_slots, pair_bits, pair_probes = _place(
        ((left << ID_BITS | right) for left, right in pairs),
        ((left << ID_BITS | right) << ID_BITS | merged for (left, right), merged in pairs.items()),
        len(pairs),
        PAIR_LOAD,
    )
    pair_slots = array("Q", (slot or MASK for slot in pair_slots))  # no pair has all bits set; (0, 0) would have none
    short = [(int.from_bytes(token, "little") | len(token) << 56) for token in tokens if 2 <= len(token) <= 7]
    short_slots, short_bits, short_probes = _place(short, short, len(short), KEY_LOAD)
    middle = [(_word(token, 0), _word(token, 8) | len(token) << 56) for token in tokens if 8 <= len(token) <= 15]
    middle_slots, middle_bits, middle_probes = _place_two(
        (((low * MIX_A) ^ (high * MIX_B)) & MASK for low, high in middle), middle, len(middle)
    )
    long_tokens = [token for token in tokens if len(token) > 15]
    text, entries = bytearray(), []
    for token in long_tokens:
        entries.append((_hash(token), len(text) | len(token) << 32))
        text += token
    long_slots, long_bits, long_probes = _place_two((key for key, _ in entries), entries, len(entries))
    index, blocks = _class_blocks(classes)
    parts = [
        array("i", (rank[bytes((byte,))] for byte in range(256))).tobytes(),
        _byte_pairs(tokens, pairs),
        pair_slots.tobytes(),
        _filter(pairs),
        short_slots.tobytes(),
        middle_slots.tobytes(),
        long_slots.tobytes(),
        bytes(text) + bytes(16),
        index,
        blocks,
        _characters(rank),
        _seams(tokens, rank),
    ]
    body, places, at = bytearray(), [], HEAD_BYTES
    for part in parts:
        places += [at, len(part)]
        body += part + bytes(-len(part) % HEAD_BYTES)
        at = HEAD_BYTES + len(body)
    probes = max(pair_probes, short_probes, middle_probes, long_probes)
    head = struct.pack(
        f"<8sIIQIIIIIII32s4x{len(places)}Q",
        MAGIC,
        VERSION,
        PATTERNS[name],
        at,
        len(tokens),
        max(map(len, tokens)),
        probes,
        pair_bits,
        short_bits,
        middle_bits,
        long_bits,
        name.encode(),
        *places,
    )
    return head + bytes(HEAD_BYTES - len(head)) + bytes(body)


def _pairs(name: str, tokens: Sequence[bytes], rank: dict[bytes, int]) -> dict[tuple[int, int], int]:
    """The one pair that byte-pair encoding makes each token of at last. Raises UnfitVocabulary."""
    pairs = {}
    get = rank.get
    for own, token in enumerate(tokens):
        size = len(token)
        if size == 1:
            continue
        ends = list(range(size + 1))
        ranks = [get(token[at : at + 2], NONE) for at in range(size - 1)]
        while len(ends) > 3:
            least = min(ranks)
            if least >= own:
                break
            at = ranks.index(least)
            del ends[at + 1], ranks[at]
            if at < len(ranks):
                ranks[at] = get(token[ends[at] : ends[at + 2]], NONE)
            if at:
                ranks[at - 1] = get(token[ends[at - 1] : ends[at + 1]], NONE)
        left, right = get(token[: ends[1]], NONE), get(token[ends[1] :], NONE)
        if len(ends) != 3 or not (left < own and right < own):
            raise UnfitVocabulary(f"{name}: token {own}, {token!r}, is not what byte-pair encoding makes of its bytes.")
        pairs[left, right] = own
    return pairs


def _word(token: bytes, start: int) -> int:
    return int.from_bytes(token[start : start + 8], "little")


def _hash(token: bytes) -> int:
    """Of a token longer than 15 bytes: eight at a time, the last word filled with zeros."""
    mixed = len(token) * MIX_B & MASK
    for start in range(0, len(token), 8):
        mixed = ((mixed ^ _word(token, start)) * MIX_A) & MASK
        mixed ^= mixed >> 29
    return mixed


def _bits(count: int, load: float) -> int:
    bits = 4
    while (1 << bits) * load < count:
        bits += 1
    return bits


def _place(keys: Iterable[int], slots: Iterable[int], count: int, load: float) -> tuple[array[int], int, int]:
    """Slots in open addressing, the bits of their number, and the longest way from a key's home to its slot."""
    bits = _bits(count, load)
    table, longest, last = array("Q", bytes(8 << bits)), 0, (1 << bits) - 1
    shift = 64 - bits
    for key, slot in zip(keys, slots, strict=True):
        home = ((key * MIX_A) & MASK) >> shift
        at = home
        while table[at]:
            at = at + 1 & last
        table[at] = slot
        longest = max(longest, at - home & last)
    return table, bits, longest


def _place_two(keys: Iterable[int], slots: Iterable[tuple[int, int]], count: int) -> tuple[array[int], int, int]:
    """As `_place`, with slots of two words, the second of which is never zero; `keys` are mixed already."""
    bits = _bits(count, KEY_LOAD)
    table, longest, last = array("Q", bytes(16 << bits)), 0, (1 << bits) - 1
    shift = 64 - bits
    for key, (low, high) in zip(keys, slots, strict=True):
        home = (((key ^ key >> 32) * MIX_A) & MASK) >> shift
        at = home
        while table[2 * at + 1]:
            at = at + 1 & last
        table[2 * at], table[2 * at + 1] = low, high
        longest = max(longest, at - home & last)
    return table, bits, longest


def _byte_pairs(tokens: Sequence[bytes], pairs: dict[tuple[int, int], int]) -> bytes:
    table = array("i", [NONE]) * 65536
    for left, right in pairs:
        if len(tokens[left]) == 1 == len(tokens[right]):
            table[tokens[left][0] << 8 | tokens[right][0]] = pairs[left, right]
    return table.tobytes()


def _filter(pairs: Iterable[tuple[int, int]]) -> bytes:
    """One bit a pair, by the same mix as its slot: most pairs that are asked for do not exist."""
    table = bytearray(1 << FILTER_BITS - 3)
    for left, right in pairs:
        bit = (((left << ID_BITS | right) * MIX_A) & MASK) >> 64 - FILTER_BITS
        table[bit >> 3] |= 1 << (bit & 7)
    return bytes(table)


def _class_blocks(classes: bytes) -> tuple[bytes, bytes]:
    """A block's number for each 128 code points, and the different blocks; that of ASCII is the first."""
    numbers: dict[bytes, int] = {}
    index = array("H")
    for start in range(0, len(classes), BLOCK):
        index.append(numbers.setdefault(classes[start : start + BLOCK], len(numbers)))
    return index.tobytes(), b"".join(numbers)


def _points() -> Iterable[int]:
    """The code points that may be units of a merge: those of the first plane, and of the emoji's 4,096."""
    yield from (point for point in range(0x80, CHARS) if not 0xD800 <= point < 0xE000)
    yield from range(EMOJI, EMOJI + EMOJIS)


def _characters(rank: dict[bytes, int]) -> bytes:
    """The token of each code point that is one by itself and has more than one byte; the emoji's after the others."""
    table = array("i", [NONE]) * (CHARS + EMOJIS)
    for point in _points():
        table[point if point < CHARS else point - EMOJI + CHARS] = rank.get(chr(point).encode(), NONE)
    return table.tobytes()


def _seams(tokens: Sequence[bytes], rank: dict[bytes, int]) -> bytes:
    """Where a merge may not start from a whole character: sets of bits over the bytes around a seam of two characters.

    A character that is a token comes to be in any text before its neighbours can take a part of it, unless a token of
    lower rank joins a part of its bytes with what lies beyond the seam. Each such token marks the seams it can lie
    over: by one byte on each side; by two before and one after; by one before and two after (the last two mixed down
    to 16 bits). Only where a seam is marked in all three must the character start as its bytes. The first three sets
    are about the character before the seam, the others about the one after it.
    """
    latest: dict[bytes, int] = {}  # of the characters with these first, or these last, bytes: the highest rank
    for point in _points():
        text = chr(point).encode()
        own = rank.get(text, -1)
        for cut in range(1, len(text)):
            for piece in (text[:cut], text[cut:]):
                latest[piece] = max(latest.get(piece, -1), own)
    left_seams, right_seams = set(), set()
    for own, token in enumerate(tokens):
        for cut in range(1, min(3, len(token) - 1) + 1):
            head, tail = token[:cut], token[-cut:]
            if latest.get(head, -1) > own and head[0] < 0xC0 and token[cut] & 0xC0 != 0x80:
                left_seams.add((head[-2:], token[cut : cut + 2]))
            if latest.get(tail, -1) > own and tail[0] >= 0xC0:
                right_seams.add((token[:-cut][-2:], tail[:2]))
    return _seam_bits(left_seams) + _seam_bits(right_seams)


def _seam_bits(seams: set[tuple[bytes, bytes]]) -> bytes:
    near, before, after = bytearray(8192), bytearray(8192), bytearray(8192)
    for left, right in seams:
        _mark(near, left[-1] << 8 | right[0])
        for first in left[:-1] or range(256):
            _mark(before, _mix_three(first, left[-1], right[0]))
        for last in right[1:] or range(256):
            _mark(after, _mix_three(left[-1], right[0], last))
    return bytes(near + before + after)


def _mix_three(first: int, second: int, third: int) -> int:
    return (((first << 16 | second << 8 | third) * MIX_A) & MASK) >> 48


def _mark(bits: bytearray, bit: int) -> None:
    bits[bit >> 3] |= 1 << (bit & 7)


def main() -> None:
    """Builds the tables beside the vocabularies."""
    from proxy.tokens import tables

    made: Callable[..., list[str]] = tables.build_all
    built = made(tables.DIRECTORY)
    print("built", ", ".join(built) if built else "nothing: the tables are of these sources already")


if __name__ == "__main__":
    main()
