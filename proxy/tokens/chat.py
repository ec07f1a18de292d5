"""How many prompt tokens a request has, by the arithmetic of its model's family. Pure.

The strings of the prompt are counted exactly; what stands around them is added by `families.yaml`. The answer says
`counted` when every part of the request is one whose arithmetic is documented, `estimated` when one of them is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from proxy.bounds import IMAGES_READ_MAX, TOOLS_BYTES_MAX
from proxy.tokens import images, tools
from proxy.tokens.estimate import TOKENS_PER_IMAGE

if TYPE_CHECKING:
    from proxy._fastpath import Encoding
    from proxy._scan import Peek
    from proxy.call import Source
    from proxy.tokens.families import Chat, Family
    from proxy.tokens.tools import Count

_TAIL_BYTES = 512  # of a system message: where its last word begins is looked for here
_cache = tools.Cache()


class _Sum:
    """Tokens so far, and whether all of them are documented."""

    def __init__(self, tokens: int, documented: bool) -> None:
        self.tokens = tokens
        self.documented = documented

    def add(self, tokens: int, documented: bool) -> None:
        self.tokens += tokens
        self.documented &= documented


def prompt_tokens(
    family: Family, encoding: Encoding, body: bytes, facts: Peek, endpoint: str, tenant: str
) -> tuple[int, Source]:
    """The prompt's tokens. `facts` are of this body; `endpoint` is the name of one of the dialect's; the encoding is
    the family's. Never raises for content.
    """
    text, names = facts.count(body, encoding)
    if family.chat is not None and endpoint == "chat.completions" and facts.plain(body):
        known = family.chat
        marks = facts.messages * known.message + names * known.name + known.primer + known.preamble
        return max(0, text + marks), "counted" if known.documented else "estimated"
    total = _Sum(text + facts.token_ids, not facts.incomplete)
    if endpoint == "chat.completions":
        total.documented &= facts.unread == 0
        if family.chat is None:  # its messages are text to us, but who knows what they are to the model
            total.documented = False
        else:
            _messages(total, family.chat, facts, names)
            _calls(total, family, family.chat, encoding, body, facts)
            _schema(total, family.chat, encoding, body, facts)
        _tools(total, family, encoding, body, facts, tenant)
    _images(total, family, body, facts)
    return max(0, total.tokens), "counted" if total.documented else "estimated"


def _messages(total: _Sum, chat: Chat, facts: Peek, names: int) -> None:
    total.add(facts.messages * chat.message + names * chat.name + chat.primer + chat.preamble, chat.documented)


def _calls(total: _Sum, family: Family, chat: Chat, encoding: Encoding, body: bytes, facts: Peek) -> None:
    """Calls of tools in the messages, and their results."""
    calls, parallel, functions, results, function_results = facts.calls(body)
    if calls or results:
        paired = calls == results and not parallel
        total.add(calls * chat.call + results * chat.result + parallel * chat.parallel, paired)
        total.add(facts.count_calls(body, encoding, chat.call_prefix.encode()), family.calls_documented)
    if functions or function_results:
        extra = functions * chat.function_call + function_results * chat.function_result
        total.add(extra, family.tools_documented)


def _schema(total: _Sum, chat: Chat, encoding: Encoding, body: bytes, facts: Peek) -> None:
    """What a response_format puts into the prompt: its schema, as text."""
    start, end = facts.response_format_span
    if start < 0:
        return
    said = body[start:end]
    try:
        value = msgspec.json.decode(said) if len(said) <= TOOLS_BYTES_MAX else said
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        value = said
    if value is None or (isinstance(value, dict) and value.get("type") == "text"):
        return
    total.documented = False
    named = value.get("json_schema") if isinstance(value, dict) else None
    if not isinstance(named, dict):
        total.tokens += encoding.count(said)
        return
    schema = msgspec.json.encode(_without(named.get("schema"), {"additionalProperties", "required"}))
    total.tokens += chat.schema + encoding.count(schema) + encoding.count(_text(named.get("name")))
    description = _text(named.get("description"))
    if description:
        total.tokens += chat.schema_description + encoding.count(description)


def _text(value: object) -> bytes:
    return value.encode() if isinstance(value, str) else b""


def _without(schema: object, keys: set[str]) -> object:
    """A schema without what is not shown to the model."""
    if isinstance(schema, dict):
        return {key: _without(value, keys) for key, value in schema.items() if key not in keys}
    if isinstance(schema, list):
        return [_without(value, keys) for value in schema]
    return schema


def _tools(total: _Sum, family: Family, encoding: Encoding, body: bytes, facts: Peek, tenant: str) -> None:
    """Tool definitions under either of their keys, and which of them must be called."""
    known = False
    for key, style, span, choice in (
        ("tools", family.tools.tools, facts.tools_span, facts.tool_choice_span),
        ("functions", family.tools.functions, facts.functions_span, facts.function_call_span),
    ):
        value = body[slice(*span)] if span[0] >= 0 else b"null"
        if value in (b"null", b"[]"):
            continue
        found = _cache.count(tenant, family.name, key, style, value, encoding)
        total.add(found.tokens, found.documented and family.tools_documented and not known)
        if choice[0] >= 0:
            chosen: Count = tools.choice(style, body[slice(*choice)], encoding)
            total.add(chosen.tokens, chosen.documented)
        if not known:
            total.add(_shared(style.shared, encoding, facts.system(body)), True)
        known = True


def _shared(saved: int, encoding: Encoding, system: bytes | None) -> int:
    """What a system message saves beside tools, and what the line feed at its end then costs."""
    if system is None:
        return 0
    tail = system
    for at in range(len(system) - 2, max(0, len(system) - _TAIL_BYTES), -1):
        # A word behind a blank begins a piece of its own in every encoding: nothing in front of it can change.
        if system[at] == 0x20 and system[at - 1 : at].isalnum() and system[at + 1 : at + 2].isalpha():
            tail = system[at:]
            break
    return saved + encoding.count(tail + b"\n") - encoding.count(tail)


def _images(total: _Sum, family: Family, body: bytes, facts: Peek) -> None:
    if not facts.images:
        return
    rule = family.images
    if rule is None:
        total.add(facts.images * TOKENS_PER_IMAGE, False)
        return
    if facts.images > IMAGES_READ_MAX or facts.incomplete:
        total.add(facts.images * images.tokens(rule, "auto", None), False)
        return
    for detail, start, end in facts.image_urls():
        size = images.size_of(body, start, end)
        known = rule.documented and (size is not None or detail == "low") and detail in ("auto", "low", "high")
        total.add(images.tokens(rule, detail, size), known)
