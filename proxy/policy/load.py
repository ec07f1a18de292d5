"""From a directory to its documents: finds the files and takes each through the passes text and shape."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Generic, NamedTuple, TypeVar

from proxy.policy import schema
from proxy.policy.problems import Path, PolicyErrors, Problem, dotted, guess
from proxy.policy.process import Written
from proxy.policy.shape import shape
from proxy.policy.text import parse

__all__ = ["Document", "Files", "PolicyErrors", "T", "base_of", "read", "read_all"]

T = TypeVar("T", bound=Written)

WEIR, PLANS, PRICES, TENANTS = "weir.yaml", "plans.yaml", "prices.yaml", "tenants"


class Document(NamedTuple, Generic[T]):
    """One file. `value` is None when it is missing or too wrong to judge further; its problems are reported by then."""

    file: str
    value: T | None
    lines: Mapping[Path, int]
    names: Mapping[Path, tuple[str, ...]]

    def line(self, *path: str | int) -> int:
        """The line of a value; of what encloses it where it was not written."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def source(self, *path: str | int) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line(*path)}"

    def problem(self, path: Path, sentence: str) -> Problem:
        return Problem(self.file, self.line(*path), dotted(path), sentence)

    def named(self, *path: str | int) -> tuple[str, ...]:
        """The keys written in a mapping, those with a wrong value too."""
        return self.names.get(path, ())


class Files(NamedTuple):
    """Everything that was read. `base` is where relative paths begin: the directory above the configuration's."""

    weir: Document[schema.WeirFile]
    plans: Document[schema.PlansFile]
    prices: Document[schema.PricesFile]
    tenants: tuple[Document[schema.TenantFile], ...]
    base: FilePath


def base_of(config_dir: str | os.PathLike[str]) -> FilePath:
    """Where relative paths in the files begin: beside the configuration directory, wherever one stands."""
    return FilePath(os.path.abspath(config_dir)).parent


def read(
    directory: FilePath, name: str, schema_type: type[T], env: Mapping[str, str], problems: list[Problem]
) -> Document[T]:
    """One file through text and shape."""
    file = str(directory / name)
    try:
        raw = (directory / name).read_bytes()
    except FileNotFoundError:
        where = "" if directory.is_dir() else f": {directory} is no directory; --config names the one with {WEIR}"
        problems.append(Problem(file, 1, "", f"no such file{where}"))
        return Document(file, None, {}, {})
    except OSError as error:
        problems.append(Problem(file, 1, "", f"cannot be read: {error.strerror}"))
        return Document(file, None, {}, {})
    tree = parse(file, raw, problems)
    if tree is None:
        return Document(file, None, {}, {})
    shaped = shape(file, tree, schema_type, env, problems)
    return Document(file, shaped.value, shaped.lines, shaped.names)


def file_complaint(path: FilePath) -> str | None:
    """The sentence about a file that the policy names and that cannot be read; None when it can."""
    try:
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return f"no file {path}"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def read_all(config_dir: str | os.PathLike[str], env: Mapping[str, str], problems: list[Problem]) -> Files:
    """All files of a configuration directory."""
    directory = FilePath(config_dir)
    weir = read(directory, WEIR, schema.WeirFile, env, problems)
    plans = read(directory, PLANS, schema.PlansFile, env, problems)
    _look_into(directory, (WEIR, PLANS, PRICES), problems)
    if os.path.lexists(directory / PRICES):
        prices = read(directory, PRICES, schema.PricesFile, env, problems)
    else:
        prices = Document(str(directory / PRICES), schema.PricesFile(version="none"), {}, {})
    tenants = []
    for path in _look_into(directory / TENANTS, (), problems):
        if path.suffix == ".yaml" and not path.name.startswith("."):
            tenants.append(read(directory / TENANTS, path.name, schema.TenantFile, env, problems))
    return Files(weir, plans, prices, tuple(tenants), base_of(config_dir))


def _look_into(directory: FilePath, known: tuple[str, ...], problems: list[Problem]) -> list[FilePath]:
    """What is in a directory, sorted; nothing when there is none.

    A policy file under a wrong name would silently not count, so it is refused. Other files are nobody's matter.
    """
    try:
        found = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(Problem(str(directory), 1, "", f"cannot be read: {error.strerror}"))
        return []
    for path in found:
        if path.name.startswith(".") or path.suffix not in (".yaml", ".yml") or path.name in known:
            continue
        if known:
            likely = guess(path.name, known, cutoff=0.85) or f"{TENANTS}/{path.stem}.yaml"
            problems.append(Problem(str(path), 1, "", f"not a file of the policy; did you mean {likely}?"))
        elif path.suffix == ".yml":
            problems.append(Problem(str(path), 1, "", f"would not be read; name it {path.stem}.yaml"))
    return found
