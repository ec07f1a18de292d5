"""`weir keys`, `weir audit` and `weir admin` as an operator gives them: what they print, change, record and refuse."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy import cli, clock, settings
from proxy.audit import files
from proxy.audit.chain import from_line, to_line
from proxy.call import UsageEvent
from proxy.flush.fold import Batch
from proxy.identity.actor import operator
from proxy.identity.credentials import digest_of
from proxy.keeping.anchors import Anchors
from proxy.record import encode
from proxy.store.store import KeyRow, Store
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import KEEPER_COLUMN, Counters
from tests.audit.test_log import tampered
from tests.store.records import event, run
from tests.world.gateway import Gateway

Weir = Callable[..., Any]


@pytest.fixture
def gateway(tmp_path: Path, sqlite_template: Path) -> Gateway:
    """A configuration and a migrated database; nothing runs."""
    made = Gateway(tmp_path, "http://127.0.0.1:1/v1")
    made.data.mkdir()
    shutil.copy(sqlite_template, made.data / "weir.db")
    return made


@pytest.fixture
def weir(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Gives a command in this process. Returns what it printed as JSON, or the sentence when it ended with 1."""

    def command(*words: str) -> Any:
        code = cli.main([*words, "--config", str(gateway.config), "--json"])
        printed = capsys.readouterr()
        if code:
            assert code == 1
            return printed.err.strip() or json.loads(printed.out)
        lines = printed.out.splitlines()
        return json.loads(lines[0]) if len(lines) == 1 else [json.loads(line) for line in lines]

    return command


def database(gateway: Gateway) -> str:
    """The URL."""
    return settings.load(gateway.config).database


def keep(gateway: Gateway) -> None:
    """What the keeper does once a second."""

    async def work() -> None:
        store = Store.open(database(gateway))
        counters = Counters(gateway.data / "metrics", KEEPER_COLUMN)
        fd = os.open(os.devnull, os.O_WRONLY)
        await Anchors(gateway.data, store, counters, Log("keeper", fd=fd)).look(now=True)
        os.close(fd)
        counters.close()
        await store.close()

    run(work())


def meddle(gateway: Gateway, *statements: str) -> None:
    """What somebody with the database in hand does."""

    async def work() -> None:
        store = Store.open(database(gateway))
        await tampered(store, *statements)
        await store.close()

    run(work())


def keys_of(gateway: Gateway) -> dict[str, KeyRow]:
    """The table."""

    async def work() -> list[KeyRow]:
        store = Store.open(database(gateway))
        rows = await store.list_keys()
        await store.close()
        return rows

    return {row.key_id: row for row in run(work())}


# === keys ===


def test_a_key_with_everything_that_can_be_said_of_it(gateway: Gateway, weir: Weir) -> None:
    """Each option stands in the row, in the listing and in the record of who made it; the secret in none of them."""
    gateway.write("plans.yaml", {"plans": {"all": {}, "small": {}}})
    words = """--name ci --env test --owner anna --tag team=search --tag a=b --endpoint embeddings
        --endpoint chat.completions --model small --plan small --network 10.0.0.0/8 --network 2001:db8::/32
        --network 192.0.2.1
        --right usage.read --right keys.read --expires-in 90d --requests-per-minute 5 --tokens-per-minute 600
        --concurrency 2 --budget-usd 12.50 --budget-tokens 1000 --budget-period month"""
    made = weir("keys", "create", "--tenant", "acme", *words.split())
    row = keys_of(gateway)[made["key_id"]]
    assert made["key"].startswith("wk_test_")
    assert (row.name, row.owner, row.plan, row.tags) == ("ci", "anna", "small", (("team", "search"), ("a", "b")))
    assert (row.endpoints, row.models) == (("embeddings", "chat.completions"), ("small",))
    assert row.networks == ("10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32")
    assert row.rights == ("usage.read", "keys.read")
    assert (row.requests_per_minute, row.tokens_per_minute, row.concurrency) == (5, 600, 2)
    assert (row.budget_nanos, row.budget_tokens, row.budget_period) == (12_500_000_000, 1000, "month")
    assert row.expires_us == row.created_us + 90 * 86_400_000_000
    assert row.created_by == f"operator {operator().actor.id}"
    (listed,) = weir("keys", "list", "--tenant", "acme", "--user", "anna")
    assert listed == {name: value for name, value in made.items() if name != "key"}
    recorded = weir("audit", "list")
    assert (recorded["action"], recorded["origin"], recorded["actor_kind"]) == ("keys.create", "cli", "operator")
    assert (recorded["actor_role"], recorded["actor_id"]) == ("platform_admin", operator().actor.id)
    assert json.loads(recorded["after"])["budget_nanos"] == 12_500_000_000
    for text in (json.dumps(listed), json.dumps(recorded)):
        assert made["key"] not in text
        assert row.digest.hex() not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tenant nobody", "there are: acme"),
        ("--tenant acme --endpoint chat", "must be one of chat.completions"),
        ("--tenant acme --plan gold", "there are: all"),
        ("--tenant acme --network 10.0.0.1/8", "host bits"),
        ("--tenant acme --network office", "such as 10.0.0.0/8"),
        ("--tenant acme --right roles.grant", "must be one of audit.read"),
        ("--tenant acme --requests-per-minute 0", "must be 1 to"),
        ("--tenant acme --budget-usd 1e-10 --budget-period day", "9 digits"),
        ("--tenant acme --budget-usd much --budget-period day", "9 digits"),
        ("--tenant acme --budget-usd NaN --budget-period day", "9 digits"),
        ("--tenant acme --budget-usd Infinity --budget-period day", "9 digits"),
        ("--tenant acme --budget-tokens 5", "--budget-period day, month, total"),
        ("--tenant acme --budget-period day", "of what budget"),
        ("--tenant acme --tag team", "NAME=VALUE"),
        ("--tenant acme --expires-in soon", "such as 90d"),
        (f"--tenant acme --name {'x' * 129}", "at most 128"),
        (f"--tenant acme --model {'x' * 97}", "1 to 96 bytes"),
        ("--tenant acme --env LIVE", "a-z and 0-9"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(gateway: Gateway, weir: Weir, words: str, sentence: str) -> None:
    """The sentence says what would be right, and nothing is stored."""
    assert sentence in weir("keys", "create", *words.split())
    assert keys_of(gateway) == {}


def test_a_model_that_nobody_serves_is_told_of(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    """The key is made, since the model may yet be written; a typing error shows all the same."""
    written = json.loads((gateway.config / "weir.yaml").read_text())
    written["models"] = {"small": {"upstream": "mock", "unpriced": True}}
    gateway.write("weir.yaml", written)
    words = ["--tenant", "acme", "--model", "smal", "--model", "small", "--config", str(gateway.config)]
    assert cli.main(["keys", "create", *words]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "weir keys: note: no entry of models serves 'smal', so this key cannot use it"
    ]


def test_a_database_without_schema_is_told_of(gateway: Gateway, weir: Weir) -> None:
    """Every verb that needs one says what to run, and makes none by the way."""
    (gateway.data / "weir.db").unlink()
    for words in (
        "keys create --tenant acme",
        "keys list",
        "keys revoke x",
        "audit list",
        "audit verify",
        "admin bootstrap",
    ):
        assert "Run `weir run`" in weir(*words.split())
    assert not (gateway.data / "weir.db").exists()


def test_rotation_overlaps(gateway: Gateway, weir: Weir) -> None:
    """The successor is the same key with another secret and as long a life; the old one ends with the overlap."""
    old = weir("keys", "create", "--tenant", "acme", "--owner", "anna", "--right", "usage.read", "--expires-in", "10d")
    new = weir("keys", "rotate", old["key_id"], "--overlap", "2h")
    rows = keys_of(gateway)
    one, two = rows[old["key_id"]], rows[new["key_id"]]
    assert new["key"] != old["key"]
    assert (one.successor, two.predecessor) == (two.key_id, one.key_id)
    assert one.retires_us is not None
    assert one.retires_us == two.created_us + 2 * 3_600_000_000
    assert one.ends_us == one.retires_us
    assert (two.owner, two.rights, two.retires_us, two.successor) == ("anna", ("usage.read",), None, None)
    assert two.expires_us == two.created_us + 10 * 86_400_000_000
    states = {key["key_id"]: key["state"] for key in weir("keys", "list")}
    assert states == {one.key_id: "retiring", two.key_id: "active"}
    assert f"{two.key_id} replaces it" in weir("keys", "rotate", one.key_id)
    assert "such as 90d" in weir("keys", "rotate", two.key_id, "--overlap", "2")
    weir("keys", "rotate", two.key_id, "--overlap", "0")
    assert "has ended" in weir("keys", "rotate", two.key_id)
    assert "no key 'key_x'" in weir("keys", "rotate", "key_x")
    assert [(row["action"], row["outcome"]) for row in reversed(weir("audit", "list"))] == [
        ("keys.create", "ok"),
        ("keys.create", "ok"),
        ("keys.rotate", "ok"),
        ("keys.rotate", "refused"),
        ("keys.create", "ok"),
        ("keys.rotate", "ok"),
        ("keys.rotate", "refused"),
        ("keys.rotate", "refused"),
    ]


def test_keys_are_revoked_by_tenant_and_by_user(gateway: Gateway, weir: Weir) -> None:
    """All that fit and still hold, each with its own record; what asks for everything by omission is refused."""
    gateway.write("tenants/globex.yaml", {"name": "globex", "plan": "all"})
    made = {}
    wanted = (("a", "acme", "anna"), ("b", "acme", "bert"), ("c", "globex", "anna"), ("d", "acme", ""))
    for name, tenant, owner in wanted:
        words = ["--owner", owner] if owner else []
        made[name] = weir("keys", "create", "--tenant", tenant, "--name", name, *words)["key_id"]

    def ended() -> set[str]:
        return {row.name for row in keys_of(gateway).values() if row.revoked_us is not None}

    assert "which keys" in weir("keys", "revoke")
    assert "which keys" in weir("keys", "revoke", made["a"], "--tenant", "acme")
    # As a shell writes a variable that is not set: it must not mean every tenant, or everybody.
    assert "none of them empty" in weir("keys", "revoke", "--tenant", "", "--user", "anna")
    assert "none of them empty" in weir("keys", "revoke", "--tenant", "acme", "--user", "")
    assert ended() == set()
    assert weir("keys", "revoke", made["d"], "--reason", "leaked") == {"key_ids": [made["d"]], "revoked": 1}
    assert "revoked already" in weir("keys", "revoke", made["d"])
    assert weir("keys", "revoke", "--user", "anna", "--tenant", "acme")["key_ids"] == [made["a"]]
    assert ended() == {"a", "d"}
    assert weir("keys", "revoke", "--user", "anna")["key_ids"] == [made["c"]]
    assert weir("keys", "revoke", "--tenant", "acme", "--reason", "gone") == {"key_ids": [made["b"]], "revoked": 1}
    assert weir("keys", "revoke", "--tenant", "acme") == {"key_ids": [], "revoked": 0}
    assert ended() == {"a", "b", "c", "d"}
    reasons = {row.name: row.revoked_reason for row in keys_of(gateway).values()}
    assert reasons == {"a": None, "b": "gone", "c": None, "d": "leaked"}
    targets = [row["target"] for row in weir("audit", "list", "--what", "keys.revoke") if row["outcome"] == "ok"]
    assert sorted(targets) == sorted([*made.values(), *["tenant=acme"] * 2, "owner=anna", "tenant=acme owner=anna"])


def test_the_last_use_comes_from_the_usage_rows(gateway: Gateway, weir: Weir) -> None:
    """A batch moves it on, no finer than a minute, never back; a key that nobody made is no matter."""
    made = weir("keys", "create", "--tenant", "acme")
    epoch = os.urandom(16)

    def used(first: int, *starts: int) -> int | None:
        events: list[UsageEvent] = [
            event(first + number, key_id=key, started_us=start)
            for number, (start, key) in enumerate((start, key) for start in starts for key in (made["key_id"], "key_x"))
        ]
        records = [encode(one) for one in events]

        async def work() -> None:
            store = Store.open(database(gateway))
            await store.persist([Batch(epoch, first, first + len(records) - 1, records, "here")])
            await store.close()

        run(work())
        return keys_of(gateway)[made["key_id"]].last_used_us

    second = 1_000_000
    assert used(1, 1000 * second, 3000 * second, 2000 * second) == 3000 * second
    assert used(7, 3059 * second) == 3000 * second
    assert used(9, 500 * second) == 3000 * second
    assert used(11, 3060 * second) == 3060 * second
    assert weir("keys", "list")[0]["last_used_us"] == 3060 * second
    # It is no change that anybody made.
    assert weir("audit", "verify")["rows"] == 1


# === audit ===


def test_verify_online_and_offline(
    gateway: Gateway, weir: Weir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole log is whole both ways; the export is a file that needs neither the database nor this host."""
    for _ in range(3):
        weir("keys", "create", "--tenant", "acme")
    assert weir("audit", "verify") == {"rows": 3, "last": 3, "anchors": 0, "anchored": 0, "findings": []}
    keep(gateway)
    weir("keys", "create", "--tenant", "acme")
    assert weir("audit", "verify") == {"rows": 4, "last": 4, "anchors": 1, "anchored": 3, "findings": []}

    export, anchors = tmp_path / "export.jsonl", tmp_path / "anchors.jsonl"
    lines = weir("audit", "export")
    assert cli.main(["audit", "export", "--config", str(gateway.config), "--output", str(export)]) == 0
    assert [json.loads(line) for line in export.read_text().splitlines()] == lines
    anchors.write_bytes((gateway.data / files.ANCHORS).read_bytes())
    public = weir("audit", "key")["public_key"]
    offline = ["audit", "verify", "--file", str(export), "--anchors", str(anchors), "--public-key", public, "--json"]
    assert cli.main([*offline, "--config", str(tmp_path / "nowhere")]) == 0
    assert '"findings":[]' in capsys.readouterr().out

    def findings() -> list[str]:
        found = weir(*offline[:-1])
        assert isinstance(found, dict), found
        return [one["kind"] for one in found["findings"]]

    rows = [from_line(line) for line in export.read_bytes().splitlines()]
    for changed, expected in (
        (rows[:2], ["truncated"]),
        (rows[:1] + rows[2:], ["missing"]),
        ([rows[1], rows[0], *rows[2:]], ["missing", "order"]),
    ):
        export.write_bytes(b"".join(to_line(row) + b"\n" for row in changed))
        assert findings()[: len(expected)] == expected
    export.write_bytes(export.read_bytes() + b"{}\n")
    assert "changed" in findings()
    export.write_bytes(b"".join(to_line(row) + b"\n" for row in rows))
    assert findings() == []
    assert "64 hexadecimal digits" in weir(*offline[:-3], "--public-key", "abc")
    assert [one["kind"] for one in weir(*offline[:-3], "--public-key", "ab" * 32)["findings"]] == ["anchor"]
    anchors.write_bytes(b"")
    assert findings() == ["anchor"]


def test_an_export_away_from_its_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no configuration it is said what to give instead."""
    (tmp_path / "log.jsonl").touch()
    words = ["audit", "verify", "--file", str(tmp_path / "log.jsonl"), "--config", str(tmp_path)]
    assert cli.main(words) == 1
    assert "give --anchors FILE and --public-key HEX" in capsys.readouterr().err


def test_verify_finds_what_was_done_to_the_database(gateway: Gateway, weir: Weir) -> None:
    """An edit by its row, a tail cut with its head by the anchors, and anchors that were taken away."""
    for _ in range(4):
        weir("keys", "create", "--tenant", "acme")
    keep(gateway)

    def kinds() -> list[tuple[str, int]]:
        return [(one["kind"], one["seq"]) for one in weir("audit", "verify")["findings"]]

    meddle(gateway, "UPDATE audit SET reason = 'x' WHERE seq = 2")
    assert kinds() == [("changed", 2)]
    meddle(gateway, "UPDATE audit SET reason = '' WHERE seq = 2")
    (gateway.data / files.ANCHORS).rename(gateway.data / "aside")
    assert kinds() == [("anchor", 0)]
    (gateway.data / "aside").rename(gateway.data / files.ANCHORS)
    head = "UPDATE audit_head SET seq = 2, hash = (SELECT hash FROM audit WHERE seq = 2)"
    meddle(gateway, "DELETE FROM audit WHERE seq > 2", head)
    assert kinds() == [("truncated", 3)]


def test_the_log_is_read_by_people(gateway: Gateway, weir: Weir, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with the newest first, who and what, why not; characters that would move the cursor are written out."""
    weir("keys", "create", "--tenant", "acme")
    weir("keys", "revoke", "key_\x1b[2J", "--reason", "x")
    assert cli.main(["audit", "list", "--config", str(gateway.config)]) == 0
    heading, newest, oldest = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["ROW", "TIME", "WHO"]
    assert newest.split()[0] == "2"
    assert "refused: there is no key" in newest
    assert "\x1b" not in newest
    assert "\\x1b" in newest
    assert "keys.create" in oldest
    assert cli.main(["audit", "verify", "--config", str(gateway.config)]) == 0
    assert capsys.readouterr().out.endswith("whole\n")
    assert "at least 1" in weir("audit", "list", "--limit", "0")
    assert "at most" in weir("audit", "list", "--limit", "9" * 30)
    assert "at most" in weir("audit", "list", "--before", "9" * 30)


# === people ===


def test_what_people_are_where(gateway: Gateway, weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invited, listed, given another role, and taken out again with their keys: by the writers that the API has."""

    def redeem(token: str, *words: str) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(token + "\n"))
        return weir("admin", "redeem", *words)

    assert "is held in a tenant" in weir("admin", "invite", "--role", "tenant_admin")
    assert "there are: acme" in weir("admin", "invite", "--role", "tenant_admin", "--tenant", "nowhere")
    assert "at most 7d" in weir("admin", "invite", "--role", "tenant_admin", "--tenant", "acme", "--expires-in", "8d")
    made = weir("admin", "invite", "--role", "tenant_admin", "--tenant", "acme")
    for words, sentence in (
        (("--name", ""), "is empty"),
        (("--name", "Anna\x1b[2J"), "cannot be shown"),
        (("--name", "anna\u202e"), "cannot be shown"),
        (("--name", " Anna"), "begins or ends with a space"),
        (("--name", "Ame\u0301lie"), "NFC"),
        (("--name", "Anna", "--email", "anna"), "ada@example.com"),
        (("--name", "Anna", "--email", "a@b@c"), "ada@example.com"),
    ):
        assert sentence in redeem(made["token"], *words), words
    user_id = redeem(made["token"], "--name", "Am\u00e9lie", "--email", "amelie@example.com")["user_id"]
    member = weir("admin", "members", "--tenant", "acme")
    assert [(one["user_id"], one["role"]) for one in member] == [(user_id, "tenant_admin")]
    assert "tenant_admin there already" in weir("admin", "grant", user_id, "--role", "tenant_admin", "--tenant", "acme")
    assert "there is no user" in weir("admin", "grant", "usr_x", "--role", "tenant_admin", "--tenant", "acme")
    given = weir("admin", "grant", user_id, "--role", "tenant_member", "--tenant", "acme")
    assert (given["role"], given["tenant"]) == ("tenant_member", "acme")
    own = weir("keys", "create", "--tenant", "acme", "--owner", user_id)["key_id"]
    weir("admin", "revoke", user_id, "--tenant", "acme")
    assert keys_of(gateway)[own].revoked_reason == "their owner has no role there any more"
    assert weir("admin", "members", "--user", user_id) == []
    assert "has no role there" in weir("admin", "revoke", user_id, "--tenant", "acme")
    done = [row["action"] for row in reversed(weir("audit", "list", "--actor", operator().actor.id)) if row["after"]]
    assert done == ["invites.create", "roles.grant", "keys.create", "sessions.revoke", "keys.revoke"]


# === the first admin ===


def test_the_first_admin(gateway: Gateway, weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that works once and soon ends, of which the digest alone is kept; every step of it is on record."""

    def redeem(token: str, name: str = "Anna") -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(token + "\n"))
        return weir("admin", "redeem", "--name", name)

    assert "at most 60m" in weir("admin", "bootstrap", "--expires-in", "2h")
    early, token = weir("admin", "bootstrap")["token"], weir("admin", "bootstrap", "--expires-in", "5m")["token"]
    content = b"".join(path.read_bytes() for path in gateway.data.glob("weir.db*"))
    assert token.encode() not in content
    assert digest_of(token) in content
    for wrong in (early, token[:-1], "weir_invite_x"):
        assert "not valid" in redeem(wrong)
    assert "no token" in redeem("")
    admin = redeem(token)
    assert (admin["role"], admin["tenant"]) == ("platform_admin", None)
    assert "not valid" in redeem(token, "Mallory")
    assert "--another" in weir("admin", "bootstrap")
    second = redeem(weir("admin", "bootstrap", "--another")["token"], "Bert")
    assert second["user_id"] != admin["user_id"]

    async def actors() -> list[Any]:
        store = Store.open(database(gateway))
        found = [await store.session_actor(digest_of(one["session"]), clock.wall_us()) for one in (admin, second)]
        assert await store.session_actor(digest_of(token), clock.wall_us()) is None
        await store.close()
        return found

    for who, found in zip((admin, second), asyncio.run(actors()), strict=True):
        assert (found[1].kind, found[1].id, found[1].role, found[1].tenant) == (
            "user",
            who["user_id"],
            "platform_admin",
            None,
        )
    rows = list(reversed(weir("audit", "list")))
    assert [row["action"] for row in rows if row["outcome"] == "ok"] == [
        "invites.create",
        "invites.revoke",
        "invites.create",
        *("users.create", "roles.grant", "invites.redeem", "sessions.create"),
        "invites.create",
        *("users.create", "roles.grant", "invites.redeem", "sessions.create"),
    ]
    assert [row["action"] for row in rows if row["outcome"] == "refused"] == [
        *["invites.redeem"] * 4,
        "invites.create",
    ]
    for secret in (early, token, admin["session"]):
        assert secret not in json.dumps(rows)
    assert weir("audit", "verify")["findings"] == []
