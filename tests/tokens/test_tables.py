"""The built tables: the same bytes everywhere, built once, checked by the supervisor, mapped and shared by workers."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.parts import Plan
from proxy.supervisor import Refused, Supervisor
from proxy.telemetry.log import Log
from proxy.tokens import build, encoding, tables, vocabulary
from proxy.tokens.tables import DamagedTable
from tests.tokens.oracle import NAMES

ROOT = Path(__file__).resolve().parents[2]
# Of the tables of this version of the format.
SHA256 = {
    "o200k_base": "e2214852ff25e5e677ce457bdd97532a86dfc3850ba97113edafd694f03bddbd",
    "cl100k_base": "b9150d2a60336e4fa5a4a638d4a3508f64931b8d72baaf1937617124ed8284c1",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tables and their manifest, to be damaged."""
    for name in (*(f"{name}.table" for name in NAMES), tables.MANIFEST):
        (tmp_path / name).write_bytes((tables.DIRECTORY / name).read_bytes())
    return tmp_path


def test_the_manifest_is_one_for_sha256sum() -> None:
    """Aim: an operator can check an installation without Weir."""
    lines = (tables.DIRECTORY / tables.MANIFEST).read_text().splitlines()
    assert re.fullmatch(r"# made from [0-9a-f]{64}", lines[0])
    wanted = [f"{hashlib.sha256(tables.path(name).read_bytes()).hexdigest()}  {name}.table" for name in NAMES]
    assert lines[1:] == wanted
    tables.verify()


def test_only_what_is_missing_or_stale_is_built(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: a second build does nothing; one after a damage, a loss or a change of the sources does everything."""
    built: list[str] = []

    def quick(name: str, tokens: list[bytes], classes: bytes) -> bytes:
        assert len(classes) == vocabulary.CODE_POINTS
        built.append(name)
        return tokens[-1]

    monkeypatch.setattr(build, "build", quick)
    assert tables.build_all(copy) == []
    tables.path("cl100k_base", copy).unlink()
    assert tables.build_all(copy) == list(NAMES) == built
    assert tables.build_all(copy) == []
    tables.path("cl100k_base", copy).write_bytes(b"damaged")
    assert tables.build_all(copy) == list(NAMES)
    manifest = copy / tables.MANIFEST
    manifest.write_text(manifest.read_text().replace("# made from ", "# made from 0"))
    assert tables.build_all(copy) == list(NAMES)
    assert sorted(path.name for path in copy.iterdir()) == sorted([*(f"{name}.table" for name in NAMES), manifest.name])


def test_a_new_table_leaves_the_mapped_one_alone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: a worker goes on with the table it mapped while an installation puts another in its place."""
    from proxy._fastpath import Encoding

    made = Encoding(str(tables.path("cl100k_base", copy)))
    (copy / tables.MANIFEST).unlink()
    monkeypatch.setattr(build, "build", lambda name, tokens, classes: b"another")
    tables.build_all(copy)
    assert tables.path("cl100k_base", copy).read_bytes() == b"another"
    assert made.count(b"hello world") == 2


def test_setup_builds_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """Aim: the build step of a wheel puts tables into the wheel's tree, even when no extension is built, and they have
    the same bytes on any machine, whatever Python's hash seed."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path)]
    env = {**os.environ, "WEIR_EXT": "none", "PYTHONHASHSEED": "7"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    built = tmp_path / "proxy" / "tokens" / "vocab"
    tables.verify(built)
    sums = {name: hashlib.sha256(tables.path(name, built).read_bytes()).hexdigest() for name in NAMES}
    assert sums == SHA256, "another format has other bytes: if build.py was changed on purpose, these are the new sums"
    for name in NAMES:
        assert tables.path(name).read_bytes() == tables.path(name, built).read_bytes(), "run `make build`"


class TestVerify:
    """What the supervisor finds out before it starts anything."""

    def refusal(self, directory: Path) -> str:
        with pytest.raises(DamagedTable) as raised:
            tables.verify(directory)
        sentence = str(raised.value)
        assert sentence.endswith("install Weir again, or run `make build` in its source tree.")
        assert "\n" not in sentence
        return sentence

    @pytest.mark.parametrize("name", NAMES)
    def test_one_bit(self, copy: Path, name: str) -> None:
        """Aim: a single bit, far from the head, is found, and the sentence has both sums."""
        path = tables.path(name, copy)
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 1
        path.write_bytes(body)
        found = hashlib.sha256(body).hexdigest()
        right = hashlib.sha256(tables.path(name).read_bytes()).hexdigest()
        assert self.refusal(copy).startswith(
            f"The token table {path} is damaged: its sha256 is {found} and was {right} when it was built;"
        )

    def test_a_missing_table(self, copy: Path) -> None:
        """Aim: a table that is not there is named."""
        tables.path("o200k_base", copy).unlink()
        assert "o200k_base.table cannot be read (No such file or directory);" in self.refusal(copy)

    @pytest.mark.parametrize("manifest", [None, b"", b"\xff\xfe", b"0  other.table\n"])
    def test_a_broken_manifest(self, copy: Path, manifest: bytes | None) -> None:
        """Aim: tables that cannot be judged are not used."""
        (copy / tables.MANIFEST).unlink()
        if manifest is not None:
            (copy / tables.MANIFEST).write_bytes(manifest)
        assert "tables.sha256 is missing or does not name o200k_base.table;" in self.refusal(copy)

    def test_the_supervisor_refuses(self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Aim: with a damaged table nothing is started, nothing is held, and the refusal is that sentence."""
        tables.path("cl100k_base", copy).write_bytes(b"WEIRTOKN")
        monkeypatch.setattr(tables, "DIRECTORY", copy)
        data = tmp_path / "data"
        plan = Plan(data_dir=data, host="127.0.0.1", port=0, workers=1, worker=("false",), keeper=None)
        with pytest.raises(Refused, match=r"cl100k_base\.table is damaged"):
            Supervisor(plan, Log("supervisor", "json"))
        assert not data.exists()


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_shared(name: str) -> None:
    """Aim: counting writes to no page of the table: all workers of a host have one copy in memory."""
    made = encoding(name)
    text = "".join(token.decode("utf-8", "ignore") for token in vocabulary.read(name)[::7])
    assert made.count(text.encode()) > 10_000
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    own = [entry for entry in maps if entry.splitlines()[0].endswith(str(tables.path(name)))]
    assert own
    pages = dict.fromkeys(("Rss", "Private_Dirty", "Shared_Dirty", "Anonymous", "Swap"), 0)
    for entry in own:
        assert entry.split()[1].startswith("r--")
        for key in pages:
            pages[key] += int(re.search(rf"^{key}: +(\d+) kB", entry, re.M).group(1))
    assert pages.pop("Rss") > 1000
    assert set(pages.values()) == {0}
