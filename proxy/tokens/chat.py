"""How many prompt tokens a request has, by the arithmetic of its model's family. Pure.

The strings of the prompt are counted exactly; what stands around them is added by `families.yaml`. The answer says
`counted` when every part of the request is one whose arithmetic is documented, `estimated` when one of them is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from proxy.bounds import IMAGES_READ_MAX
from proxy.tokens import images, tools
from proxy.tokens.estimate import TOKENS_PER_IMAGE

if TYPE_CHECKING:
    from proxy._fastpath import Encoding
    from proxy._scan import Peek
    from proxy.call import Source
    from proxy.tokens.families import Chat, Family
    from proxy.tokens.tools import Count

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
    family: Family, encoding: Encoding, body: bytes, facts: Peek, endpoint: str, tenant: str, *, anew: bool = True
) -> tuple[int, Source]:
    """The prompt's tokens. `facts` are of this body; `endpoint` is the name of one of the dialect's; the encoding is
    the family's. Never raises for content; tools.Unknown for tool definitions that were not counted before, unless they
    may be counted `anew`.
    """
    known = family.chat
    if known is not None and endpoint == "chat.completions":
        plain = facts.count_plain(body, encoding, known.message, known.name)
        if plain is not None:  # as nearly every prompt is
            tokens = plain + known.primer + known.preamble
            return tokens if tokens > 0 else 0, "counted" if known.documented else "estimated"
    total = _Sum(facts.token_ids, not (facts.incomplete or facts.unread))
    if endpoint == "chat.completions":
        _tools(total, family, encoding, body, facts, tenant, anew)  # first: it may be that nothing is counted
    text, names = facts.count(body, encoding)
    total.add(text, True)
    if endpoint == "chat.completions":
        if family.chat is None:  # its messages are text to us, but who knows what they are to the model
            total.documented = False
        else:
            _messages(total, family.chat, facts, names)
            _calls(total, family, family.chat, encoding, body, facts)
            _schema(total, family.chat, encoding, body, facts)
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
        value = tools.decoded(said)
    except tools.Unreadable:
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


def _tools(total: _Sum, family: Family, encoding: Encoding, body: bytes, facts: Peek, tenant: str, anew: bool) -> None:
    """Tool definitions under either of their keys, and which of them must be called."""
    known = False
    for key, style, span, choice in (
        ("tools", family.tools.tools, facts.tools_span, facts.tool_choice_span),
        ("functions", family.tools.functions, facts.functions_span, facts.function_call_span),
    ):
        value = body[slice(*span)] if span[0] >= 0 else b"null"
        if value == b"null" or not value.strip(b"[] \t\r\n"):
            continue
        found = _cache.count(tenant, family.name, key, style, value, encoding, anew=anew)
        total.add(found.tokens, found.documented and family.tools_documented and not known)
        if choice[0] >= 0:
            chosen: Count = tools.choice(style, body[slice(*choice)], encoding)
            total.add(chosen.tokens, chosen.documented)
        if not known:
            line_end = facts.count_line_end(body, encoding)
            if line_end is not None:
                total.add(style.shared + line_end, True)
        known = True


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
