"""The reference page and the editor's schema are those of the schema that reads the files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.policy import document
from proxy.settings import Settings
from tests.policy.gallery import BASE, EXAMPLE, cases

DOCS = EXAMPLE.parent / "docs"


def test_the_documents_are_not_stale() -> None:
    """Should equal what the generator makes: run `python -m proxy.policy.document` after a change of the schema."""
    assert document.main(["--check", "--docs", str(DOCS)]) == 0


def test_stale_documents_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Should exit 1 when a file is missing or differs, and write what `--check` then takes."""
    assert document.main(["--check", "--docs", str(tmp_path)]) == 1
    assert document.main(["--docs", str(tmp_path)]) == 0
    assert document.main(["--check", "--docs", str(tmp_path)]) == 0
    page = tmp_path / "configuration.md"
    page.write_text(page.read_text().replace("8080", "8081"))
    assert document.main(["--check", "--docs", str(tmp_path)]) == 1
    assert "configuration.md: stale" in capsys.readouterr().err


def test_every_key_is_explained() -> None:
    """Should give each row a type, a default and a meaning, and a number its unit or a plain count."""
    page = document.markdown()
    table = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.splitlines() if line.startswith("| `")]
    keys = [row for row in table if not row[0].endswith(".yaml`")]
    assert len(keys) >= 60
    for row in keys:
        assert row[1].strip(), row
        assert row[2].strip(), row
        assert row[4].strip().endswith("."), row
    assert "NODEFAULT" not in page
    process = set(re.findall(r"`(\w+)`", page.partition("process part")[2].partition("take effect")[0]))
    known = {field for field in Settings.__struct_fields__ if field != "config_dir"}
    assert process == {"retention" if "retention" in field else field.partition("_requests")[0] for field in known}


def test_the_editor_schema_takes_the_good_files_and_refuses_unknown_keys() -> None:
    """Should accept every value of the gallery's good files by type, and know no key that the reader does not."""
    schema = json.loads(document.json_schema())
    seen = 0
    for config in (EXAMPLE, BASE, *(case for case in cases("good") if case.name != "windows-file")):
        for path in config.rglob("*.yaml"):
            if path.name.startswith("."):
                continue
            name = "tenant" if path.parent.name == "tenants" else path.stem
            assert complaint(schema, {"$ref": f"#/$defs/{name}"}, yaml.safe_load(path.read_text("utf-8"))) == "", path
            assert complaint(schema, schema, yaml.safe_load(path.read_text("utf-8"))) == "", path
            seen += 1
    assert seen >= 15
    assert complaint(schema, {"$ref": "#/$defs/tenant"}, {"name": "a", "plan": "b", "limit": {}}) == "limit: unknown"
    assert complaint(schema, {"$ref": "#/$defs/tenant"}, {"name": "a"}) == "plan: missing"
    assert complaint(schema, {"$ref": "#/$defs/tenant"}, {"name": "a", "plan": "b", "limits": {"concurrency": 0}}) != ""


def complaint(root: dict[str, Any], schema: dict[str, Any], value: object) -> str:
    """A small reader of the keywords that the schema uses, written from the JSON Schema 2020-12 text."""
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return complaint(root, target, value)
    if "anyOf" in schema:
        return (
            "" if any(complaint(root, option, value) == "" for option in schema["anyOf"]) else f"{value!r}: no option"
        )
    if "enum" in schema and value not in schema["enum"]:
        return f"{value!r}: not in enum"
    kinds = schema.get("type", [])
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    allowed = [kinds] if isinstance(kinds, str) else kinds
    if allowed and not any(isinstance(value, types[kind]) for kind in allowed):  # type: ignore[arg-type]
        return f"{value!r}: not {kinds}"
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{value!r}: out of range"
    if isinstance(value, str) and re.search(schema.get("pattern", ""), value) is None:
        return f"{value!r}: pattern"
    if isinstance(value, list):
        return next(filter(None, (complaint(root, schema.get("items", {}), item) for item in value)), "")
    if isinstance(value, dict):
        return mapping_complaint(root, schema, value)
    return ""


def mapping_complaint(root: dict[str, Any], schema: dict[str, Any], value: dict[str, object]) -> str:
    for name in schema.get("required", []):
        if name not in value:
            return f"{name}: missing"
    for name, inner in value.items():
        more = schema.get("additionalProperties", True)
        below = schema.get("properties", {}).get(name, more)
        if below is False:
            return f"{name}: unknown"
        if isinstance(below, dict) and (said := complaint(root, below, inner)):
            return said
    return ""
