"""The chain by itself: what belongs to a hash, and what a walk along the rows finds, with anchors and without."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from hashlib import sha256

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import asdict, fields

from proxy import bounds
from proxy.audit import anchor
from proxy.audit.anchor import Anchor
from proxy.audit.chain import (
    GENESIS,
    Entry,
    NotRecordable,
    Record,
    canonical,
    clean,
    follow,
    from_line,
    hash_of,
    to_line,
)
from proxy.audit.verify import Walk

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes_raw()
PUBLICS = {anchor.key_id(PUBLIC): PUBLIC}


def record(number: int) -> Record:
    """An ordinary one, unlike the others."""
    return Record(
        actor_kind="user",
        actor_id=f"usr_{number}",
        actor_role="tenant_admin",
        actor_tenant="acme",
        origin="192.0.2.1",
        action="keys.revoke",
        tenant="acme",
        target=f"key_{number}",
        before='{"revoked_us":null}',
        after=f'{{"revoked_us":{number}}}',
        outcome="ok",
        reason="leaked",
    )


def chain(count: int) -> list[Entry]:
    """Rows 1 to `count`."""
    rows: list[Entry] = []
    for number in range(1, count + 1):
        rows.append(follow(record(number), number, 1000 + number, rows[-1].hash if rows else GENESIS))
    return rows


def anchors(rows: list[Entry], *numbers: int) -> list[bytes]:
    """The lines of a file in which these rows are anchored."""
    lines: list[bytes] = []
    for number in numbers:
        row = rows[number - 1]
        lines.append(anchor.sign(PRIVATE, row.seq, row.hash, row.at_us, lines[-1] if lines else None))
    return lines


def found(rows: list[Entry], lines: list[bytes] | None = None) -> list[tuple[str, int]]:
    """The findings of a walk, as (kind, row)."""
    good, wrong = anchor.read(lines or [], PUBLICS)
    assert wrong == []
    walk = Walk(good)
    for row in rows:
        walk.step(row)
    return [(one.kind, one.seq) for one in walk.end()]


def test_a_whole_chain_has_no_findings() -> None:
    """With and without anchors; an empty log is whole too."""
    rows = chain(9)
    assert found(rows) == []
    assert found(rows, anchors(rows, 3, 6, 9)) == []
    assert found([]) == []


def test_the_hash_is_over_the_whole_row_in_this_very_form() -> None:
    """Written out once by hand, so that the form cannot change unnoticed: logs of years hang on it."""
    row = msgspec.structs.replace(chain(1)[0], tenant=None, before=None)
    parts = [b"weir.audit.row.1\0"]
    for value in list(asdict(row).values())[:-1]:
        if value is None:
            parts.append(b"n" + bytes(8))
            continue
        kind = {int: b"i", str: b"s", bytes: b"b"}[type(value)]
        data = value if isinstance(value, bytes) else str(value).encode()
        parts.append(kind + len(data).to_bytes(8, "big") + data)
    assert hash_of(row) == sha256(b"".join(parts)).digest()
    assert [field.name for field in fields(Entry)][-2:] == ["previous", "hash"]


def altered(row: Entry, name: str, bit: int) -> Entry:
    """The row with one bit of one of its fields flipped; the absent becomes the empty."""
    value = getattr(row, name)
    if isinstance(value, int):
        new: object = value ^ (1 << bit % 40)
    elif isinstance(value, bytes):
        new = bytes([value[0] ^ (1 << bit % 8), *value[1:]])
    elif isinstance(value, str):
        new = chr(ord(value[0]) ^ (1 << bit % 6)) + value[1:] if value else "\1"
    else:
        new = ""
    return msgspec.structs.replace(row, **{name: new})


@pytest.mark.parametrize("name", [field.name for field in fields(Entry)])
def test_a_bit_flipped_in_any_field_is_found(name: str) -> None:
    """Every field of the first, a middle and the last row; what is found names that row."""
    for number in (1, 5, 9):
        for bit in range(8):
            rows = chain(9)
            rows[number - 1] = altered(rows[number - 1], name, bit)
            assert any(seq == rows[number - 1].seq or seq == number for _, seq in found(rows)), (number, bit)
    null = chain(3)
    null[1] = msgspec.structs.replace(null[1], tenant=None)
    assert ("changed", 2) in found(null)


def test_fields_do_not_run_into_each_other() -> None:
    """Characters moved from one field to the next make another hash."""
    row = chain(1)[0]
    moved = msgspec.structs.replace(row, actor_kind=row.actor_kind + row.actor_id[0], actor_id=row.actor_id[1:])
    assert hash_of(moved) != hash_of(row)


def recomputed(rows: list[Entry], start: int) -> list[Entry]:
    """The rows from `start` on chained anew, as somebody would who knows how it is done."""
    out = rows[:start]
    for row in rows[start:]:
        values = {name: value for name, value in asdict(row).items() if name in Record.__struct_fields__}
        out.append(follow(Record(**values), len(out) + 1, row.at_us, out[-1].hash if out else GENESIS))
    return out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[:3] + rows[4:], ("missing", 4)),
        (lambda rows: rows[1:], ("missing", 1)),
        (lambda rows: [*rows[:3], rows[4], rows[3], *rows[5:]], ("order", 4)),
        (lambda rows: [*rows[:4], rows[2], *rows[4:]], ("order", 3)),
        (lambda rows: [*rows[:4], follow(record(77), 5, 1, rows[3].hash), *rows[5:]], ("link", 6)),
        (lambda rows: [*rows[:4], follow(record(77), 5, 1, rows[3].hash), *rows[4:]], ("order", 5)),
    ],
    ids=["deleted", "first deleted", "swapped", "repeated", "replaced", "inserted"],
)
def test_rows_taken_away_moved_or_added_are_found(
    change: Callable[[list[Entry]], list[Entry]], expected: tuple[str, int]
) -> None:
    """Each by the row at which the chain does not hold; without any anchor."""
    assert expected in found(change(chain(9)))


def test_a_tail_that_was_made_anew_is_found_by_the_anchors() -> None:
    """All hashes recomputed from a changed row on: the chain holds, the first anchor after it does not."""
    rows = chain(12)
    lines = anchors(rows, 4, 8, 12)
    for changed, named in ((2, 4), (4, 4), (5, 8), (9, 12), (12, 12)):
        old = list(rows)
        old[changed - 1] = msgspec.structs.replace(old[changed - 1], target="key_of_mine")
        new = recomputed(old, changed - 1)
        assert found(new) == []
        findings = found(new, lines)
        assert findings[0] == ("rewritten", named), changed
    # Removed without a gap: the numbers close up behind it.
    assert found(recomputed(rows[:5] + rows[6:], 5), lines)[0] == ("rewritten", 8)


def test_a_truncation_is_found_up_to_the_last_anchor() -> None:
    """Rows that were anchored are missed; those after the last anchor could be gone, and nobody else can tell."""
    rows = chain(10)
    lines = anchors(rows, 4, 8)
    assert found(rows[:7], lines) == [("truncated", 8)]
    assert found([], lines) == [("truncated", 1)]
    assert found(rows[:8], lines) == []
    walk = Walk()
    for row in rows[:9]:
        walk.step(row)
    assert [one.kind for one in walk.end((10, rows[9].hash))] == ["head"]


def test_findings_have_a_bound() -> None:
    """A log in ruins is told of with so many sentences and no more."""
    rows = [altered(row, "target", 1) for row in chain(bounds.AUDIT_FINDINGS_MAX + 50)]
    assert len(found(rows)) == bounds.AUDIT_FINDINGS_MAX


# === anchors ===


def test_anchors_that_were_tampered_with_are_refused() -> None:
    """Each line tells what is wrong with it: signature, key, form, order; nothing of it counts as an anchor."""
    rows = chain(8)
    lines = anchors(rows, 2, 4, 6)

    def wrong(changed: list[bytes]) -> list[str]:
        return anchor.read(changed, PUBLICS)[1]

    def with_field(name: str, value: object) -> bytes:
        return json.dumps({**json.loads(lines[1]), name: value}, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    assert wrong(lines) == []
    for name, value in (("seq", 5), ("hash", "00" * 32), ("at_us", 1), ("previous", "11" * 32)):
        assert "signature" in wrong([lines[0], with_field(name, value), lines[2]])[0], name
    assert "not among those given" in wrong([lines[0], with_field("key", "ab" * 8)])[0]
    assert "cannot be read" in wrong([b"{}\n"])[0]
    assert "cannot be read" in wrong([with_field("more", 1)])[0]
    assert "does not follow" in wrong([lines[0], lines[2]])[0]
    assert "does not follow" in wrong([lines[1]])[0]
    assert "does not follow" in wrong([lines[0], lines[0]])[0]
    assert "is not written" in wrong([lines[0].replace(b",", b", ", 1)])[0]
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    assert "not among those given" in wrong([anchor.sign(other, 1, rows[0].hash, 5, None)])[0]
    back = anchor.sign(PRIVATE, 1, rows[0].hash, 9, lines[-1])
    assert "anchors row 1 after row 6" in wrong([*lines, back])[0]
    assert len(anchor.read([lines[0], b"x\n", lines[2]], PUBLICS)[0]) == 1


def test_an_append_that_was_cut_off_is_no_anchor_and_no_fault() -> None:
    """The keeper died while it wrote: at every length, the lines before count and the rest is passed over."""
    rows = chain(4)
    lines = anchors(rows, 2, 4)
    for length in range(len(lines[1])):
        good, wrong = anchor.read([lines[0], lines[1][:length]] if length else lines[:1], PUBLICS)
        assert ([one.seq for one in good], wrong) == ([2], [])


def test_a_signature_is_over_every_field() -> None:
    """But for itself: so that none can be changed, and none can be added without being signed."""
    assert {field.name for field in fields(Anchor)} == {"seq", "hash", "at_us", "key", "previous", "signature"}


# === what is recorded, and what is exported ===


@pytest.mark.parametrize("name", ["secret", "password", "token", "digest", "key"])
def test_secrets_are_not_recorded(name: str) -> None:
    """At any depth; a change that carries one is refused, not cut."""
    for value in ({name: "x"}, {"a": {name: "x"}}, {"a": [{"b": {name: 1}}]}):
        with pytest.raises(NotRecordable, match=name):
            canonical(value)
    assert canonical({"tags": {name: "x"}}) is not None


def test_canonical_json_has_one_form() -> None:
    """Names sorted, no spaces, ASCII alone; nothing without a form, and nothing above the bound."""
    assert canonical({"b": 1, "a": "\u00e9\0\ud800"}) == '{"a":"\\u00e9\\u0000\\ud800","b":1}'
    assert canonical(None) is None
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})
    with pytest.raises(NotRecordable, match="at most"):
        canonical({"a": "x" * bounds.AUDIT_JSON_BYTES_MAX})


def test_texts_are_made_such_as_every_database_holds() -> None:
    """NUL and lone surrogates become visible, long ones are cut between characters."""
    assert clean("a\0b\ud800c") == "a\\0b\\ud800c"
    cut = clean("\u20ac" * bounds.AUDIT_TEXT_BYTES_MAX)
    assert len(cut.encode()) <= bounds.AUDIT_TEXT_BYTES_MAX
    assert set(cut) == {"\u20ac"}


def test_an_exported_row_comes_back_or_is_refused() -> None:
    """Every row reads back equal; what no export would write is refused: what is shown must be what counts."""
    rows = chain(3)
    rows[1] = follow(
        msgspec.structs.replace(record(2), tenant=None, after=None, reason="\u20ac\\\n"), 2, 5, rows[0].hash
    )
    for row in rows:
        assert from_line(to_line(row)) == row
    line = to_line(rows[0])
    values = json.loads(line)
    for wrong in (
        b"",
        b"[]",
        b"7",
        b"{",
        line.replace(b'"seq":1', b'"seq":1.0'),
        line.replace(b'"seq":1', b'"seq":true'),
        line.replace(b'"seq":1', b'"seq":2,"seq":1'),
        line.replace(b",", b", ", 1),
        json.dumps({**values, "more": 1}, sort_keys=True, separators=(",", ":")).encode(),
        json.dumps({**values, "hash": values["hash"].upper()}, sort_keys=True, separators=(",", ":")).encode(),
        json.dumps({**values, "hash": 5}, sort_keys=True, separators=(",", ":")).encode(),
        json.dumps({name: value for name, value in values.items() if name != "reason"}).encode(),
        b'{"a":' * 100_000,
    ):
        with pytest.raises(ValueError):
            from_line(wrong)


def test_flips_anywhere_in_an_export_are_found() -> None:
    """A thousand single bits of an exported log, drawn: each is a line that is refused or a finding."""
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    text = b"".join(to_line(row) + b"\n" for row in chain(6))
    for _ in range(1000):
        at, bit = draw.randrange(len(text)), draw.randrange(8)
        flipped = bytearray(text)
        flipped[at] ^= 1 << bit
        walk = Walk()
        refused = False
        for line in bytes(flipped).splitlines():
            try:
                walk.step(from_line(line))
            except ValueError:
                refused = True
        assert refused or walk.end(), f"seed {seed}: byte {at}, bit {bit}"
