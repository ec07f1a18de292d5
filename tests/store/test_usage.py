"""Reports against an oracle of plain Python, verify against planted faults, and retention."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy import text

from proxy.call import UsageEvent
from proxy.cli import main
from proxy.flush.fold import DAY_US, Batch
from proxy.record import encode, encode_end
from proxy.store.store import Filters, Store
from proxy.store.usage import BY, By
from proxy.store.verify import Verified, check_journals, complement
from proxy.verbs.usage import dollars, parse_time
from tests.store.records import START_US, batches, day, differences, event, mixed, run

EPOCH = bytes(range(16))
OTHER = bytes(reversed(range(16)))
EVENTS = mixed(11, 500)


async def fill(store: Store, events: Sequence[UsageEvent] = EVENTS, epoch: bytes = EPOCH) -> None:
    """A closed epoch with these events."""
    await store.persist(batches(epoch, events, 50, "d" * 16))
    await store.persist([Batch(epoch, len(events) + 1, len(events) + 1, [encode_end(len(events))], "d" * 16)])


async def change(store: Store, *statements: str) -> None:
    """What no part of the product does: reaching into the tables."""
    async with store.engine.connect() as connection:
        connection = await connection.execution_options(write=True)
        for statement in statements:
            await connection.execute(text(statement))
        await connection.commit()


def groups_of(one: UsageEvent, by: By) -> list[str]:
    """Under which groups an event counts."""
    if by == "tag":
        return [f"{name}={value}" for name, value in one.tags] or [""]
    return [day(one.started_us) if by == "day" else getattr(one, {"key": "key_id"}.get(by, by))]


@pytest.mark.parametrize("by", BY)
def test_a_report_sums_what_happened(url: str, by: By) -> None:
    """Each grouping, whole days and not: the figures of a plain loop over the events."""
    odd = START_US + 86_400_000_000

    async def work() -> None:
        store = Store.open(url)
        await fill(store)
        whole = odd // DAY_US * DAY_US
        for filters, source in (
            (Filters(), "rollups"),
            (Filters(since_us=whole, until_us=whole + 2 * DAY_US), "rollups"),
            (Filters(tenant="acme", model="small", since_us=odd), "rows"),
            (Filters(key_id="globex_1", until_us=odd), "rows"),
        ):
            sums: dict[str, Counter[str]] = defaultdict(Counter)
            for one in EVENTS:
                if (
                    (filters.tenant or one.tenant) == one.tenant
                    and (filters.model or one.model) == one.model
                    and (filters.key_id or one.key_id) == one.key_id
                    and one.started_us >= (filters.since_us or 0)
                    and one.started_us < (filters.until_us or 2**62)
                ):
                    for group in groups_of(one, by):
                        sums[group]["requests"] += 1
                        sums[group]["completion_tokens"] += one.completion_tokens
                        sums[group]["cost_nanos"] += one.cost_nanos
                        sums[group]["unpriced"] += one.price_version == ""
                        sums[group]["estimated"] += one.source == "estimated"
                        sums[group]["lower_bound"] += one.lower_bound
            report = await store.usage_by([by], filters)
            assert report.source == ("rows" if by in ("user", "tag") else source)
            found = {
                line.group[0]: {name: getattr(line, name) for name in sums[line.group[0]]} for line in report.lines
            }
            assert found == {group: dict(total) for group, total in sums.items()}
            if by != "tag":
                assert report.total.requests == sum(total["requests"] for total in sums.values())
        await store.close()

    run(work())


def test_two_groupings_at_once_and_their_order(url: str) -> None:
    """By day lines are in order; by anything else the dearest comes first."""

    async def work() -> None:
        store = Store.open(url)
        await fill(store)
        by_day = [line.group for line in (await store.usage_by(["day", "tenant"])).lines]
        assert by_day == sorted(by_day)
        assert len(by_day) == len({(day(one.started_us), one.tenant) for one in EVENTS})
        costs = [line.cost_nanos for line in (await store.usage_by(["tenant", "user"])).lines]
        assert costs == sorted(costs, reverse=True)
        await store.close()

    run(work())


def test_rows_come_in_pages_without_gap_or_double(url: str) -> None:
    """Newest first, page by page, ties included: each row once; a made-up cursor is refused."""
    events = [event(call, started_us=START_US + call // 10) for call in range(1, 101)]

    async def work() -> None:
        store = Store.open(url)
        await fill(store, events)
        await fill(store, events, OTHER)
        seen: list[tuple[int, str, int]] = []
        cursor: str | None = None
        while True:
            rows, cursor = await store.usage_rows(Filters(tenant="acme"), 7, cursor)
            seen += [(row["started_us"], row["epoch"], row["call"]) for row in rows]
            if cursor is None:
                break
        assert seen == sorted(seen, reverse=True)
        assert len(set(seen)) == len(seen) == 200
        with pytest.raises(ValueError, match="cursor"):
            await store.usage_rows(cursor="1.2")
        await store.close()

    run(work())


FAULTS: dict[str, tuple[str, Sequence[str]]] = {
    "a lost row": ("missing", ["DELETE FROM usage WHERE call IN (7, 8, 300)"]),
    "a lost row with its counter": (
        "missing",
        ["DELETE FROM usage WHERE call = 7", "UPDATE epochs SET rows = rows - 1"],
    ),
    "a row too many": ("counter", ["UPDATE usage SET call = 501 WHERE call = 500"]),
    "a wrong counter": ("counter", ["UPDATE epochs SET rows = rows + 1"]),
    "rows of no epoch": ("counter", ["DELETE FROM epochs"]),
    "a changed row": ("rollup", ["UPDATE usage SET completion_tokens = completion_tokens + 1 WHERE call = 9"]),
    "a changed roll-up": ("rollup", ["UPDATE usage_rollup SET cost_nanos = cost_nanos + 1"]),
    "a lost roll-up": ("rollup", ["DELETE FROM usage_rollup WHERE tenant = 'acme'"]),
    "a roll-up of nothing": ("rollup", ["UPDATE usage_rollup SET upstream = 'x' WHERE upstream = ''"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_finds_each_planted_fault(url: str, fault: str) -> None:
    """Green before, and after one change behind its back the right kind of finding."""
    kind, statements = FAULTS[fault]

    async def work() -> None:
        store = Store.open(url)
        await fill(store)
        assert (await store.verify()).findings == []
        await change(store, *statements)
        findings = (await store.verify()).findings
        assert kind in {finding.kind for finding in findings}, findings
        if fault == "a lost row":
            calls = [finding.calls for finding in findings if finding.kind == "missing"]
            assert calls == [((7, 8), (300, 300))]
        await store.close()

    run(work())


def test_verify_finds_what_the_flush_set_aside(url: str) -> None:
    """Quarantine and conflicts are findings until a person has looked at them; so is a call without a record."""

    async def work() -> None:
        store = Store.open(url)
        records = [encode(event(1)), b"Ejunk", encode(event(1, user="other")), encode_end(2)]
        await store.persist([Batch(EPOCH, 1, 4, records)])
        found = {finding.kind: finding for finding in (await store.verify()).findings}
        assert set(found) == {"missing", "quarantine", "conflict"}
        assert found["missing"].calls == ((2, 2),)
        assert found["conflict"].calls == ((1, 1),)
        await store.close()

    run(work())


def test_an_open_epoch_is_not_missing_anything_yet(url: str) -> None:
    """Calls in flight have no row: only an ended epoch can be judged."""

    async def work() -> None:
        store = Store.open(url)
        await store.persist([Batch(EPOCH, 1, 1, [encode(event(5))], "d" * 16)])
        verified = await store.verify()
        assert verified.findings == []
        assert verified.epochs_open == [(EPOCH.hex(), "d" * 16)]
        await store.close()

    run(work())


def test_an_epoch_must_be_over_alive_or_recovered() -> None:
    """Judged with the journals of one data directory; other hosts' epochs are not its business."""

    def kinds(alive: Sequence[bytes], dead: Sequence[bytes]) -> list[tuple[str, str]]:
        verified = Verified(0, 0, [(EPOCH.hex(), "mine"), (OTHER.hex(), "theirs")], [])
        check_journals(verified, "mine", alive, dead)
        return [(finding.kind, finding.epoch) for finding in verified.findings]

    assert kinds([EPOCH], []) == []
    assert kinds([], []) == [("epoch", EPOCH.hex())]
    assert kinds([], [EPOCH]) == [("epoch", EPOCH.hex())]


def test_retention_removes_rows_and_keeps_the_books(url: str) -> None:
    """Old rows go in bounded batches, roll-ups stay, verify is green, and what is gone does not come back as new."""
    before = START_US + 2 * 86_400_000_000 + 12345
    kept = [one for one in EVENTS if one.started_us >= before]

    async def work() -> None:
        store = Store.open(url)
        await fill(store)
        total = (await store.usage_by(["tenant"])).total
        assert await store.expire(before, 30) == len(EVENTS) - len(kept)
        assert await store.expire(before, 30) == 0
        assert (await store.verify()).findings == []
        assert len((await store.usage_rows(limit=1000))[0]) == len(kept)
        assert (await store.usage_by(["tenant"])).total == total
        again = await store.persist(batches(EPOCH, EVENTS, 100))
        assert (again.new, again.doubles) == (0, len(EVENTS))
        assert (await store.verify()).findings == []
        await store.close()

    run(work())


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("missing", "DELETE FROM usage WHERE started_us = (SELECT max(started_us) FROM usage)"),
        ("rollup", "UPDATE usage_rollup SET requests = 0, cost_nanos = 0"),
        ("rollup", "DELETE FROM usage_rollup WHERE day = (SELECT min(day) FROM usage)"),
        ("counter", "UPDATE epochs SET expired_rows = expired_rows + 1"),
    ],
)
def test_verify_still_sees_faults_after_retention(url: str, kind: str, statement: str) -> None:
    """Deleted rows are no blanket excuse: what is lost beside them is found."""

    async def work() -> None:
        store = Store.open(url)
        await fill(store)
        await store.expire(START_US + 86_400_000_000 + 777)
        assert (await store.verify()).findings == []
        await change(store, statement)
        assert kind in {finding.kind for finding in (await store.verify()).findings}
        await store.close()

    run(work())


def test_the_verb_prints_tables_and_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`weir usage` in its forms, exact to the cent's billionth, and its exit codes."""
    events = [
        event(1, cost_nanos=1_500_000_000, tenant="acme"),
        event(2, cost_nanos=7, tenant="globex"),
        event(3, cost_nanos=0, price_version="", tenant="globex", user="\x1b[31mred"),
    ]

    def weir(*words: str) -> tuple[int, str, str]:
        code = main(["usage", *words, "--database", url])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    async def prepare(work: Callable[[Store], Awaitable[None]]) -> None:
        store = Store.open(url)
        await work(store)
        await store.close()

    run(prepare(lambda store: fill(store, events)))
    code, out, _ = weir()
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["tenant", "requests", "prompt", "cached", "completion", "reasoning", "audio", "cost", "unpriced", "estimated"],
        ["acme", "1", "10", "2", "5", "1", "0", "$1.50", "0", "0"],
        ["globex", "2", "20", "4", "10", "2", "0", "$0.000000007", "1", "0"],
        ["total", "3", "30", "6", "15", "3", "0", "$1.500000007", "1", "0"],
    ]
    answer = json.loads(weir("--by", "tenant,model", "--tenant", "acme", "--json")[1])
    line = answer["lines"][0]
    assert (answer["source"], line["cost_nanos"], line["cost_dollars"]) == ("rollups", 1_500_000_000, "1.50")
    code, out, _ = weir("--rows", "--limit", "2")
    assert "more: --cursor" in out
    assert "\x1b" not in out
    assert [line.split()[-3] for line in out.splitlines()[:3]] == ["source", "unpriced", "$0.000000007"]
    rows = json.loads(weir("--rows", "--json")[1])["rows"]
    assert [row["call"] for row in rows] == [3, 2, 1]
    assert weir("verify")[:2] == (0, "3 rows of 1 closed and 0 open epochs\nnothing is missing, nothing is double\n")
    run(prepare(lambda store: change(store, "DELETE FROM usage WHERE call = 2")))
    code, out, _ = weir("verify")
    assert code == 1
    assert "1 of 3 calls have no row (2)" in out
    code, out, _ = weir("verify", "--json")
    assert (code, {one["kind"] for one in json.loads(out)["findings"]}) == (1, {"missing", "counter", "rollup"})
    assert weir("--by", "colour")[2] == "weir usage: --by colour: it must be one of " + ", ".join(BY) + ".\n"
    assert weir("--since", "yesterday")[0] == 1


def test_a_lower_bound_is_marked(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a model may have thought unseen, sums and rows show ≥ before the completion, and JSON says how often."""
    events = [event(1), event(2, tenant="globex", source="counted", lower_bound=True)]

    def weir(*words: str) -> str:
        assert main(["usage", *words, "--database", url]) == 0
        return capsys.readouterr().out

    async def prepare() -> None:
        store = Store.open(url)
        await fill(store, events)
        await store.close()

    run(prepare())
    assert [line.split()[4] for line in weir().splitlines()] == ["completion", "5", "≥5", "≥10"]
    assert [line["lower_bound"] for line in json.loads(weir("--json"))["lines"]] == [0, 1]
    assert ["≥5" in weir("--rows", "--tenant", tenant) for tenant in ("acme", "globex")] == [False, True]
    assert [row["lower_bound"] for row in json.loads(weir("--rows", "--json"))["rows"]] == [True, False]


def test_dollars_are_exact() -> None:
    """No rounding and no floating point, whatever the size."""
    assert [dollars(nanos) for nanos in (0, 1, 10**7, 123 * 10**9, 2**62)] == [
        "$0.00",
        "$0.000000001",
        "$0.01",
        "$123.00",
        "$4611686018.427387904",
    ]


def test_times_as_people_write_them() -> None:
    """Dates and whole days begin at midnight UTC; offsets are honoured."""
    now = START_US
    midnight = now // DAY_US * DAY_US
    assert parse_time(None, now) is None
    assert parse_time("2026-09-21", now) == midnight
    assert parse_time("2026-09-21T02:00:00+02:00", now) == midnight
    assert parse_time("2d", now) == midnight - 2 * DAY_US
    assert parse_time("12h", now) == now - 12 * 3_600_000_000
    assert parse_time("1960-01-01", now) == 0
    with pytest.raises(ValueError, match="is no time"):
        parse_time("soon", now)


def test_the_complement_of_spans() -> None:
    """What is missing of 1 to n."""
    assert complement([], 3) == [(1, 3)]
    assert complement([(1, 3)], 3) == []
    assert complement([(2, 2), (5, 9)], 7) == [(1, 1), (3, 4)]
    assert complement([(9, 12), (1, 1)], 7) == [(2, 7)]


def test_differences_is_no_blind_oracle(url: str) -> None:
    """The tests' own check of rows and roll-ups sees a lost, a changed and a doubled sum."""

    async def work() -> None:
        store = Store.open(url)
        await fill(store)
        assert await differences(store, {EPOCH: EVENTS}) == []
        await change(store, "UPDATE usage SET total_us = 0 WHERE call = 1", "DELETE FROM usage WHERE call = 2")
        await change(store, "UPDATE usage_rollup SET requests = requests * 2 WHERE tenant = 'acme'")
        found = " ".join(await differences(store, {EPOCH: EVENTS}))
        assert "missing" in found
        assert "call 1: total_us" in found
        assert "requests" in found
        await store.close()

    run(work())
