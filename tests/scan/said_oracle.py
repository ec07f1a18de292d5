"""What a chat stream says, by plain reading: json for each frame, a text for each lane, tiktoken for the count."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from tests.tokens import oracle

Lane = tuple[object, ...]
INDEX_MAX = 1 << 24


def index_of(element: dict[str, Any], ordinal: int) -> int:
    """What an element says of its place, or where it stands when that is no index."""
    index = element.get("index")
    return index if type(index) is int and 0 <= index < INDEX_MAX else ordinal


class Said:
    """The texts of one answer, by choice, kind and tool call."""

    def __init__(self) -> None:
        self.texts: defaultdict[Lane, str] = defaultdict(str)

    def tokens(self, encoding: str) -> int:
        return sum(oracle.count(encoding, text) for text in self.texts.values())

    def hear(self, answer: object) -> None:
        """One frame's object, or a whole answer."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        for ordinal, choice in enumerate(choices if isinstance(choices, list) else ()):
            if not isinstance(choice, dict):
                continue
            place = index_of(choice, ordinal)
            self.add((place, "text"), choice.get("text"))
            for key in ("delta", "message"):
                if isinstance(message := choice.get(key), dict):
                    self.message(place, message)

    def add(self, lane: Lane, text: object) -> None:
        if isinstance(text, str):
            self.texts[lane] += text

    def message(self, place: int, message: dict[str, Any]) -> None:
        self.parts(place, "content", message.get("content"))
        self.add((place, "refusal"), message.get("refusal"))
        thoughts = [message.get(name) for name in ("reasoning_content", "reasoning")]
        found = [thought for thought in thoughts if isinstance(thought, str)]
        if found:
            # The longer of the two, the first where they are equally long.
            self.add((place, "reasoning"), max(found, key=lambda text: len(text.encode("utf-8", "surrogatepass"))))
        calls = message.get("tool_calls")
        for ordinal, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                self.call((place, "call", index_of(call, ordinal)), call)
        self.function((place, "function"), message.get("function_call"), "arguments")

    def call(self, lane: Lane, call: dict[str, Any]) -> None:
        self.function(lane, call.get("function"), "arguments")
        self.function(lane, call.get("custom"), "input")

    def function(self, lane: Lane, function: object, arguments: str) -> None:
        if isinstance(function, dict):
            self.add((*lane, "name"), function.get("name"))
            self.add((*lane, "arguments"), function.get(arguments))

    def parts(self, place: int, kind: str, content: object) -> None:
        self.add((place, kind), content)
        if isinstance(content, list):
            for part in content:
                self.parts(place, kind, part)
        elif isinstance(content, dict):
            self.parts(place, kind, content.get("text"))
            self.parts(place, "reasoning", content.get("thinking"))


def heard(frames: list[bytes]) -> Said:
    """What whole frames of one data line say; those that are no JSON say nothing."""
    said = Said()
    for frame in frames:
        try:
            said.hear(json.loads(frame.removeprefix(b"data:").strip()))
        except ValueError:
            continue
    return said
