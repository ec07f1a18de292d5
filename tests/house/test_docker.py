"""The container files hold what they promise, as far as that can be read without an engine."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import settings
from proxy.cli import VERBS
from proxy.policy.compile import compile_policy
from proxy.tokens import tables

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: (name, rest), continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def last_stage() -> list[tuple[str, str]]:
    """What the image is made of in the end."""
    found = instructions()
    return found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]


def compose() -> dict[str, Any]:
    """docker-compose.yml, merges resolved."""
    read: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return read


def test_the_image_is_built_in_stages_from_pinned_bases() -> None:
    """Aim: the compiler stays in a stage of its own, and every base names its version."""
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in bases), bases
    said = " ".join(rest for _, rest in last_stage())
    assert "gcc" not in said
    assert "--from=build" in said


def test_the_image_runs_as_nobody_special() -> None:
    """Aim: the last USER is a number that is not root's, set after everything that needs root."""
    stage = last_stage()
    at, user = [(at, rest) for at, (name, rest) in enumerate(stage) if name == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert all(name not in ("RUN", "COPY", "ADD") for name, _ in stage[at:])


def test_commands_are_lists_and_name_verbs_that_exist() -> None:
    """Aim: signals reach Weir and not a shell, and the health check, the command and compose use real verbs."""
    stage = dict(last_stage())
    assert json.loads(stage["ENTRYPOINT"]) == ["weir"]
    assert json.loads(stage["CMD"])[0] in VERBS
    health = json.loads(stage["HEALTHCHECK"].partition("CMD")[2])
    assert health[:2] == ["weir", "health"]
    assert "health" in VERBS
    for name, service in compose()["services"].items():
        assert isinstance(service.get("command", []), list), name
        if service.get("image") == "weir-gateway":
            assert service["command"][0] in VERBS


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    """Aim: every source of COPY is in the tree and not ignored, and nothing else is sent."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, rest in instructions():
        assert name != "ADD", "ADD unpacks and downloads; COPY does neither"
        if name != "COPY" or "--from" in rest:
            continue
        *sources, _ = shlex.split(rest)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == item or source.startswith(item + "/") for item in allowed), source
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_token_tables_are_built_in_the_image() -> None:
    """Aim: their sources reach the builder, and no table of the machine at hand does."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!*"]
    ignored += [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines() if "**/" in line]
    sources = ("classes.txt", "o200k_base.vocab", "cl100k_base.vocab", "LICENSE.tiktoken", "LICENSE.unicode")
    assert {path.name for path in (ROOT / "proxy" / "tokens" / "vocab").iterdir()} >= set(sources)
    assert not [name for name in sources for pattern in ignored if fnmatch(name, pattern)]
    for name in ("o200k_base.table", tables.MANIFEST):
        assert any(fnmatch(name, pattern) for pattern in ignored), name


def test_no_secret_stands_in_the_files() -> None:
    """Aim: passwords and keys come from the environment alone."""
    for path in (ROOT / "Dockerfile", ROOT / "docker-compose.yml", *ROOT.glob("deploy/*/weir.yaml")):
        for line in path.read_text().splitlines():
            if re.search(r"(?i)(password|secret|key)\S*[:=]\s*\S", line) and not line.lstrip().startswith("#"):
                assert "${" in line, f"{path.name}: {line}"


def test_compose_confines_what_it_runs() -> None:
    """Aim: Weir's containers have a read-only root, no capabilities and room in /tmp; stores publish no port."""
    services = compose()["services"]
    assert set(services) == {"weir", "flush", "redis", "postgres"}
    for name in ("weir", "flush"):
        service = services[name]
        assert service["read_only"] is True
        assert "/tmp" in service["tmpfs"]
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
    for name in ("redis", "postgres"):
        assert "ports" not in services[name]
        assert "healthcheck" in services[name]
        assert re.search(r":\d+\.?\d*-", services[name]["image"]), "a version, not latest"
    assert all(port.startswith("127.0.0.1:") for port in services["weir"]["ports"])
    assert "noeviction" in services["redis"]["command"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose()["volumes"], volume


@pytest.mark.parametrize("name", ["container", "compose"])
def test_their_configurations_compile(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aim: the weir.yaml of image and compose, laid over config/, has no problem and listens on the exposed ports."""
    monkeypatch.setenv("WEIR_DB_PASSWORD", "x")
    for path in (ROOT / "config").rglob("*.yaml"):
        copy = tmp_path / path.relative_to(ROOT / "config")
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "weir.yaml").write_bytes((ROOT / "deploy" / name / "weir.yaml").read_bytes())
    assert compile_policy(tmp_path).tenants
    process = settings.load(tmp_path)
    ports = dict(last_stage())["EXPOSE"].split()
    assert [str(process.listen.port), str(process.metrics.port)] == ports
    assert process.listen.host == "0.0.0.0"
    assert str(process.data_dir) == json.loads(dict(last_stage())["VOLUME"])[0]
