"""The OpenAPI document: made of the table, in step with docs/, and true of what the API does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.control import openapi
from proxy.control.document import PATH
from proxy.control.table import OPERATIONS, PREFIX
from tests.control.admin import Admin, admin

TRUE_OF_ALL = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DOCUMENT = openapi.document()
# All that schemathesis finds here is found in the document itself; it is read once.
SCHEMA = schemathesis.openapi.from_dict(json.loads(json.dumps(DOCUMENT)))


def refused(ctx: Any, response: Any, case: Any) -> bool | None:
    """What the document does not allow is refused; schemathesis does not count 414 among the refusals."""
    return None if response.status_code == 414 else negative_data_rejection(ctx, response, case)


@contextmanager
def serving(directory: Path, database: str) -> Iterator[Admin]:
    """The API in a thread of its own, for callers that block."""
    ready, over = threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def work() -> None:
        async with admin(directory, database) as api:
            found.extend((api, asyncio.get_running_loop()))
            ready.set()
            await over.wait()

    def run() -> None:
        try:
            asyncio.run(work())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(120)
        yield found[0]
    finally:
        if found:
            found[1].call_soon_threadsafe(over.set)
        thread.join(120)


def test_it_says_every_operation() -> None:
    """Each operation of the table stands in it once, and every reference in it leads somewhere."""
    said = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert said == {(one.method, PREFIX + one.path) for one in OPERATIONS}
    text = json.dumps(DOCUMENT)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in DOCUMENT["components"]["schemas"], name


def test_the_one_in_docs_is_in_step(sqlite_url: str, tmp_path: Path) -> None:
    """What is served, what is made and what stands in docs/ are the same bytes."""

    async def work() -> None:
        async with admin(tmp_path, sqlite_url) as api:
            reply = await api.call("GET", "/openapi.json")
            assert reply.body == openapi.encode() == PATH.read_bytes()

    asyncio.run(work())


@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as_it_says", "not_as_it_says"]
)
def test_it_is_true(sqlite_url: str, tmp_path: Path, mode: GenerationMode) -> None:
    """Whatever the document lets one ask is answered as it says; what it does not allow is refused, never a failure."""
    checks = [*TRUE_OF_ALL, *([refused] if mode == GenerationMode.NEGATIVE else [])]
    tried: set[str] = set()
    with serving(tmp_path, sqlite_url) as api:
        for result in SCHEMA.get_all_operations():
            operation = result.ok()
            if mode == GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
                continue

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=6,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
                deadline=None,
                database=None,
            )
            def ask(case: Any) -> None:
                headers = {"authorization": f"Bearer {api.root}"}
                case.call_and_validate(base_url=api.base, headers=headers, checks=checks)
                tried.add(case.operation.definition.raw["operationId"])

            ask()
    assert len(tried) > len(OPERATIONS) / 2
