"""The data of families: every model name finds its own, and a mistake in the file is told by its place."""

from __future__ import annotations

import pytest
import yaml

from proxy.tokens import ENCODINGS, families
from proxy.tokens.families import BadFamilies, Patches, Tiles

FOUND = {
    "gpt-4o": ["gpt-4o", "gpt-4o-2024-08-06", "openai/gpt-4o", "chatgpt-4o-latest", "gpt-4.1", "gpt-4.1-2025-04-14"],
    "gpt-4o-mini": ["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "ft:gpt-4o-mini-2024-07-18:org::id", "GPT-4o-Mini"],
    "gpt-4.1-mini": ["gpt-4.1-mini", "openrouter/openai/gpt-4.1-mini"],
    "gpt-4.1-nano": ["gpt-4.1-nano-2025-04-14"],
    "gpt-5": ["gpt-5", "gpt-5-2025-08-07", "gpt-5-chat-latest", "gpt-5.1", "gpt-5.1-codex"],
    "gpt-5-mini": ["gpt-5-mini"],
    "gpt-5-nano": ["gpt-5-nano-2025-08-07"],
    "gpt-5.2": ["gpt-5.2-pro"],
    "gpt-5.4": ["gpt-5.4-mini"],
    "gpt-5.5": ["gpt-5.5"],
    "gpt-5.6": ["gpt-5.6-luna"],
    "o-series": ["o1", "o1-pro", "o1-mini", "o3", "o3-mini-2025-01-31", "azure/o3"],
    "o4-mini": ["o4-mini", "o4-mini-2025-04-16"],
    "gpt-4": ["gpt-4", "gpt-4-0613", "gpt-4-turbo", "gpt-3.5-turbo", "gpt-3.5-turbo-0613", "gpt-35-turbo-16k"],
    "gpt-3.5-turbo-0301": ["gpt-3.5-turbo-0301"],
    "gpt-oss": ["gpt-oss-120b", "openai/gpt-oss-20b"],
    "completions": ["gpt-3.5-turbo-instruct", "gpt-3.5-turbo-instruct-0914"],
    "embeddings": ["text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"],
}
UNKNOWN = ["", "llama-3.1-8b", "gpt-5.9", "gpt-40", "gpt-4ox", "o5", "o11", "text-embedding-4", "claude-3", "mygpt-4o"]


def test_every_family_is_found() -> None:
    """Names with dates, variants and providers' prefixes find the most specific family; every family has one."""
    for family, names in FOUND.items():
        for name in names:
            found = families.find(name)
            assert found is not None, name
            assert found.name == family, name
    assert FOUND.keys() == families.known().by_name.keys()


def test_what_is_not_known_has_no_family() -> None:
    """A name that only looks alike is not taken for one that is known: its count would be wrong, and called exact."""
    for name in UNKNOWN:
        assert families.find(name) is None, name
    assert families.named("no such family") is None
    assert families.named("gpt-4o") is families.find("gpt-4o")


def test_the_data_is_whole() -> None:
    """Encodings exist, models that think are marked, and only plain text goes without messages."""
    for name, family in families.known().by_name.items():
        assert family.encoding in ENCODINGS
        assert family.reasoning == (name.startswith(("gpt-5", "o", "gpt-oss"))), name
        assert (family.chat is None) == (name in ("completions", "embeddings")), name
        if family.chat is not None and name != "gpt-oss":
            assert isinstance(family.images, Tiles | Patches), name


GOOD = yaml.safe_load(families.PATH.read_bytes())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("families: [", "families.yaml: while parsing a flow node did not find expected node content"),
        ({"prefixes": 1}, "families.yaml: Expected `array`, got `int` - at `$.prefixes`"),
        ({"surprise": 1}, "families.yaml: Object contains unknown field `surprise`"),
        (
            {"families": {"a": {"models": ["a"], "encoding": "p50k_base"}}},
            "families.yaml: Invalid enum value 'p50k_base' - at `$.families[...].encoding`",
        ),
        (
            {"families": {"a": {"models": ["a"], "encoding": "o200k_base", "chat": "opnai"}}},
            "families.yaml: families.a.chat: there is no `opnai`; there are openai, ",
        ),
        (
            {"families": {"a": {"models": ["a"], "encoding": "o200k_base", "images": "x"}}},
            "families.yaml: families.a.images: there is no `x`; there are tiles-85, ",
        ),
        (
            {
                "families": {
                    "a": {"models": ["m"], "encoding": "o200k_base"},
                    "b": {"models": ["m"], "encoding": "o200k_base"},
                }
            },
            "families.yaml: families.b.models: m is a model of a already; remove one of the two",
        ),
        (
            {"images": {"p": {"kind": "patches", "square": 32, "multiplier_milli": 1, "details": {}}}},
            "families.yaml: images.p.details: `auto` is missing, which stands for the rest",
        ),
        (
            {
                "images": {
                    "p": {"kind": "patches", "square": 32, "multiplier_milli": 1, "details": {"auto": {"side": 1}}}
                }
            },
            "families.yaml: images.p.remote_tokens: must be there where a detail has no bound",
        ),
        (
            {"images": {"p": {"kind": "circles"}}},
            "families.yaml: Invalid value 'circles' - at `$.images[...].kind`",
        ),
    ],
)
def test_mistakes_are_told(change: str | dict[str, object], sentence: str) -> None:
    """Each mistake in the file is one sentence that names its place."""
    text = change if isinstance(change, str) else yaml.safe_dump({**GOOD, **change}, sort_keys=False)
    with pytest.raises(BadFamilies) as caught:
        families.read(text)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
