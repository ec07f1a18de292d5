"""Makes docs/configuration.md and docs/weir.schema.json from the schema. `--check` fails when they are stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, inspect

from proxy.policy import schema
from proxy.policy.schema import EVERY

FILES: tuple[tuple[str, type], ...] = (
    ("weir.yaml", schema.WeirFile),
    ("plans.yaml", schema.PlansFile),
    ("prices.yaml", schema.PricesFile),
    ("tenants/<tenant>.yaml", schema.TenantFile),
)
_DEFINITIONS = {"weir.yaml": "weir", "plans.yaml": "plans", "prices.yaml": "prices", "tenants/<tenant>.yaml": "tenant"}

_HEAD = f"""# Configuration

Made by `python -m proxy.policy.document` from the schema that reads the files; do not edit.

A configuration is one directory, `config/` unless `--config` says otherwise:

| file | what it holds |
|---|---|
| `weir.yaml` | the process, the upstreams, the models |
| `plans.yaml` | what a tenant on each plan may use |
| `prices.yaml` | prices, exact; may be absent when every model is `unpriced` |
| `tenants/<tenant>.yaml` | one tenant |

Editors check and complete the files by `weir.schema.json`, named in the first line of each example.

`weir check` prints every problem of every file with its line, and exits 1 when there is one. `weir explain` says which
line decides what a key may do. `weir reload` takes a changed policy whole or not at all; changes of the process part
(`listen`, `metrics`, `control`, `data_dir`, `database`, `redis`, `workers`, `drain_seconds`, `journal`, `retention`,
`log`, `pepper`) take effect at the next start.

## Rules of all files

- **Names.** An unknown key is an error. So is a key that stands twice, a key without a value, and a `.yaml` file under
  a name that is not read.
- **Text, numbers, switches.** YAML readers disagree on plain words such as `no`, `010` or `2025-06-01`. Weir never
  guesses: a switch is `true` or `false`, a number is plain digits (`1_000_000` is fine), and text that YAML would take
  for something else is put in quotes.
- **Anchors, aliases, merge keys and tags** are not supported: the line that one reads is the line that decides.
- **`${{NAME}}`** in a value is replaced by that environment variable when the files are read, `${{NAME:-default}}` by
  the default when it is unset or empty, `$${{` by `${{`. A variable that is unset and has no default is an error.
- **Secrets** stand in no file: only `${{NAME}}`, `${{NAME:-}}` (may be absent) or `file:/absolute/path`. They are read
  where they are used and never stored with the policy; `weir reload` reads those of the upstreams again. One that
  cannot be read is a warning of `weir check`, and an error where a policy is taken into use. `database` and `redis`
  may hold `${{NAME}}` in place of the password, or be `file:/absolute/path` as a whole.
- **Relative paths** begin at the directory above the configuration's: with `config/weir.yaml`, `.data` is beside
  `config/`, wherever the command was started. `~` is not expanded.
- **Effective right = plan ∩ tenant ∩ key.** A lower level can narrow, never widen: a limit above that of the level
  above it is an error that names both lines.
- **`"{EVERY}"`** as a model takes every name without an entry of its own and passes it on unchanged. In a plan's or
  tenant's `models` it means every model. In `model_limits` it is all names without an entry, together.
- **A model without a price** is an error unless it says `unpriced: true`: a price that is not known is never zero.
"""


class Row(NamedTuple):
    path: str
    type: str
    default: str
    unit: str
    meaning: str
    example: str


def rows(kind: inspect.StructType, prefix: str = "") -> Iterator[Row]:
    """Every key of a file, nested ones by their path; `<name>` is a name of the operator's choice, `[]` an item."""
    own = kind.cls.__annotations__
    for each in sorted(kind.fields, key=lambda field: field.name not in own):
        yield from _row(each, f"{prefix}{each.encode_name}")


def _row(field: inspect.Field, path: str) -> Iterator[Row]:
    facts = _facts(field.type)
    inner = facts.kind
    if isinstance(inner, inspect.StructType):
        default = "required" if field.required else str(facts.extra.get("default", "see below"))
        if inner.cls is schema.Limits:
            yield Row(path, "[limits](#limits)", "none", "", facts.description, "")
            return
        yield Row(path, "mapping", default, "", facts.description, "")
        yield from rows(inner, f"{path}.")
        return
    if isinstance(inner, inspect.DictType):
        yield Row(path, "mapping by name", "required" if field.required else "empty", "", facts.description, "")
        below = _facts(inner.value_type).kind
        assert isinstance(below, inspect.StructType)
        if below.cls is schema.Limits:
            yield Row(f"{path}.<name>", "[limits](#limits)", "none", "", "Limits on that model.", "")
        else:
            yield from rows(below, f"{path}.<name>.")
        return
    item = _facts(inner.item_type).kind if isinstance(inner, inspect.ListType) else None
    default = _default(field, facts.extra)
    yield Row(path, _type(inner, facts.extra), default, facts.extra.get("unit", ""), facts.description, facts.example)
    if isinstance(item, inspect.StructType):
        yield from rows(item, f"{path}[].")


class _Facts(NamedTuple):
    kind: inspect.Type
    description: str
    example: str
    extra: dict[str, Any]


def _facts(kind: inspect.Type) -> _Facts:
    """A type without its wrappings, and what they say."""
    description, example = "", ""
    extra: dict[str, Any] = {}
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        if isinstance(kind, inspect.UnionType):
            (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
            continue
        said = kind.extra_json_schema or {}
        description = description or said.get("description", "")
        if not example and "examples" in said:
            example = _written(said["examples"][0])
        extra = {**(kind.extra or {}), **extra}
        kind = kind.type
    return _Facts(kind, description, example, extra)


def _written(value: Any) -> str:
    """A value as it would stand in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(field: inspect.Field, extra: dict[str, Any]) -> str:
    if field.required:
        return "required"
    if "default" in extra:
        return str(extra["default"])
    if field.default is not NODEFAULT:
        return f"`{_written(field.default)}`"
    assert callable(field.default_factory)
    return f"`{_written(field.default_factory())}`"


def _type(kind: inspect.Type, extra: dict[str, Any]) -> str:
    if isinstance(kind, inspect.ListType):
        item = _facts(kind.item_type)
        return f"list of {_type(item.kind, item.extra)}"
    if isinstance(kind, inspect.StructType):
        return "mappings"
    if isinstance(kind, inspect.LiteralType):
        # `values` is sorted by msgspec, so the page is the same on every machine.
        return " or ".join(f"`{word}`" for word in kind.values)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        noun = "whole number" if isinstance(kind, inspect.IntType) else "number"
        return f"{noun}, {kind.ge} to {kind.le}"
    if isinstance(kind, inspect.DecimalType):
        return "decimal number, up to 9 decimals"
    if isinstance(kind, inspect.BoolType):
        return "`true` or `false`"
    if extra.get("secret"):
        return "secret: `${NAME}` or `file:/path`"
    if extra.get("path"):
        return "path"
    if "address" in extra:
        return "address"
    return f"text: {extra['rule']}" if "rule" in extra else "text"


def markdown() -> str:
    """docs/configuration.md."""
    parts = [_HEAD, *(_table(name, schema_type) for name, schema_type in FILES)]
    return "\n".join([*parts, _table("limits", schema.Limits)])


def _table(title: str, schema_type: type) -> str:
    kind = inspect.type_info(schema_type)
    assert isinstance(kind, inspect.StructType)
    lines = [f"## {title}", ""]
    if schema_type is schema.Limits:
        lines += ["Wherever limits stand, these are the keys. What is left out is not limited at that level.", ""]
    lines += ["| key | type | default | unit | meaning | example |", "|---|---|---|---|---|---|"]
    for row in rows(kind):
        example = f"`{row.example}`" if row.example else ""
        cells = (f"`{row.path}`", row.type, row.default, row.unit, row.meaning, example)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def json_schema() -> str:
    """docs/weir.schema.json: a file is one of the four, told apart by its required keys.

    Where `${NAME}` may stand for a number or a switch, the editor's schema allows that text too.
    """
    types = [schema_type for _, schema_type in FILES]
    (*_,), components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    for component in components.values():
        for name, said in component.get("properties", {}).items():
            component["properties"][name] = _variable_too(said)
    definitions = {_DEFINITIONS[name]: {"$ref": f"#/$defs/{schema_type.__name__}"} for name, schema_type in FILES}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Weir configuration",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in definitions],
        "$defs": {**definitions, **components},
    }
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2).decode() + "\n"


def _variable_too(said: dict[str, Any]) -> dict[str, Any]:
    """A property as an editor should see it: no null, no empty default of a mapping, and variables for numbers."""
    said = {key: value for key, value in said.items() if not (key == "default" and value in (None, {}))}
    options = [option for option in said.pop("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        said = {**options[0], **said}
    elif options:
        said["anyOf"] = options
    if said.get("format") == "decimal":
        del said["format"], said["type"]
        said["type"] = ["number", "string"]
    if said.get("type") in ("integer", "number", "boolean"):
        outer = ("description", "default", "examples")
        inner = {key: value for key, value in said.items() if key not in outer}
        variable = {"type": "string", "pattern": r"\$\{"}
        said = {"anyOf": [inner, variable], **{key: said[key] for key in outer if key in said}}
    return said


def main(arguments: list[str] | None = None) -> int:
    """Writes both files, or with `--check` says which one is stale and returns 1."""
    parser = argparse.ArgumentParser(prog="python -m proxy.policy.document", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args(arguments)
    stale = False
    for name, text in (("configuration.md", markdown()), ("weir.schema.json", json_schema())):
        path = args.docs / name
        if args.check:
            if not path.exists() or path.read_text("utf-8") != text:
                stale = True
                print(f"{path}: stale; run python -m proxy.policy.document", file=sys.stderr)
        else:
            path.write_text(text, "utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
