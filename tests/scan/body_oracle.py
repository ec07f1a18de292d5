"""A plain reader of request bodies: orjson judges validity, json gives the pairs, a recursive walk gives the facts."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import orjson

from proxy.bounds import JSON_DEPTH_MAX, MODEL_BYTES_MAX, USER_BYTES_MAX

LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
GOVERNED = ("model", "stream", "stream_options", "n", "user", *LIMITS)
OPTIONS = ("include_usage", "include_obfuscation")
TEXT = {"content", "text", "name", "arguments", "refusal", "reasoning", "reasoning_content", "output", "input"}
AUDIO_AND_FILES = {"input_audio", "file"}
SILENT = {"id", "type", "role", "custom", "function", "tool_calls", "tool_call_id", "function_call", "cache_control"}
# Go's encoding/json: any case of ASCII letters, and two characters that fold onto them.
FOLD = {ord("\u017f"): "s", ord("\u212a"): "k"} | {ord(c): c.lower() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


class Pairs(list[tuple[str, Any]]):
    """An object with its members in order, doubles included."""


class Facts(NamedTuple):
    model: str | None
    stream: bool
    usage_asked: bool
    user: str | None
    answer_tokens: int
    choices: int
    text_bytes: int
    images: int
    token_ids: int
    messages: int
    unread: int


def size(text: str) -> int:
    return len(text.encode())


def cut(text: str, bytes_max: int) -> str:
    return text.encode()[:bytes_max].decode(errors="ignore")


def depth(value: object) -> int:
    inner = [v for _, v in value] if isinstance(value, Pairs) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


class Count:
    """Text, images and token ids, by the rule of `peek`."""

    def __init__(self) -> None:
        self.text = self.images = self.ids = self.unread = 0

    def all(self, value: object) -> None:
        """Every string and key."""
        if isinstance(value, str):
            self.text += size(value)
        elif isinstance(value, Pairs):
            for key, inner in value:
                self.text += size(key)
                self.all(inner)
        elif isinstance(value, list):
            for inner in value:
                self.all(inner)

    def walk(self, value: object, counts: bool) -> None:
        """`counts`: strings here are text."""
        if isinstance(value, str):
            self.text += size(value) if counts else 0
        elif isinstance(value, Pairs):
            for key, inner in value:
                key = key.lower() if key.isascii() else key
                if key == "image_url":
                    self.images += inner is not None
                    continue
                self.unread += key not in TEXT | SILENT and isinstance(inner, str | Pairs | list) and len(inner) > 0
                if key not in AUDIO_AND_FILES:
                    self.walk(inner, key in TEXT)
        elif isinstance(value, list):
            for inner in value:
                self.ids += counts and isinstance(inner, int | float) and not isinstance(inner, bool)
                self.walk(inner, counts)


def whole(value: object, low: int, high: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)


def typed(key: str, value: object) -> bool:
    """Whether a governed key's value is of its type."""
    if key == "model":
        return isinstance(value, str) and "\0" not in value
    if key == "user":
        return value is None or (isinstance(value, str) and "\0" not in cut(value, USER_BYTES_MAX))
    if key == "stream" or key in OPTIONS:
        return value is None or isinstance(value, bool)
    if key == "stream_options":
        return value is None or isinstance(value, Pairs)
    return whole(value, 1, 128) if key == "n" else whole(value, 0, 2**40)


def number(text: str) -> int | float:
    """-0 is told from 0, so that it can be refused: it is no count."""
    return -0.0 if text == "-0" else int(text)


def judge(pairs: Pairs, names: tuple[str, ...]) -> tuple[dict[str, Any], set[str]]:
    """The governed members and the codes of everything that is wrong with them."""
    found: dict[str, Any] = {}
    codes = set()
    for key, value in pairs:
        name = key.translate(FOLD)
        if name not in names:
            continue
        if name in found:
            codes.add("duplicate_key")
        found[name] = value
        if key != name or not typed(name, value):
            codes.add("bad_value")
    return found, codes


def read(body: bytes) -> Facts | set[str]:
    """The facts, or the codes with which the body may be refused."""
    try:
        if not isinstance(orjson.loads(body), dict):
            return {"bad_json"}
    except orjson.JSONDecodeError:
        return {"bad_json", "duplicate_key", "bad_value"}  # what comes first in the body is told first
    pairs = json.loads(body, object_pairs_hook=Pairs, parse_int=number)
    codes = {"bad_json"} if depth(pairs) > JSON_DEPTH_MAX else set()
    found, more = judge(pairs, GOVERNED)
    options = found.get("stream_options")
    asked = judge(options, OPTIONS)[0] if isinstance(options, Pairs) else {}
    codes |= more
    for key, value in pairs:
        if key.translate(FOLD) == "stream_options" and isinstance(value, Pairs):
            codes |= judge(value, OPTIONS)[1]
    if codes:
        return codes
    count = Count()
    messages = 0
    for key, value in pairs:
        name = key.translate(FOLD)
        if name in ("prompt", "suffix", "input", "instructions"):
            count.walk(value, True)
        elif name == "messages":
            before = count.ids
            count.walk(value, False)
            count.ids = before
            messages += len(value) if isinstance(value, list) and not isinstance(value, Pairs) else 0
        elif name in ("tools", "functions", "response_format"):
            count.all(value)
        elif name == "web_search_options":
            count.unread += value is not None
    limits = [found[key] for key in LIMITS if found.get(key) is not None]
    model, user = found.get("model"), found.get("user")
    return Facts(
        model if model is None or size(model) <= MODEL_BYTES_MAX else cut(model, MODEL_BYTES_MAX + 4),
        found.get("stream") is True,
        asked.get("include_usage") is True,
        None if user is None else cut(user, USER_BYTES_MAX),
        limits[0] if limits else -1,
        1 if found.get("n") is None else found["n"],
        count.text,
        count.images,
        count.ids,
        messages,
        count.unread,
    )
