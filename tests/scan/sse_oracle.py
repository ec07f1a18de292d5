"""A plain reader of server-sent events and chat chunks: whole streams, regular expressions, json."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from proxy.bounds import FRAME_BYTES_HELD_MAX, FRAME_BYTES_PARSED_MAX

LINE = re.compile(rb"([^\r\n]*)(\r\n|\r|\n|\Z)")
Usage = tuple[int, int, int, int, int]


class Facts(NamedTuple):
    frames: int
    text_bytes: int
    usage: Usage | None
    model: str
    done: bool
    error: bool
    hidden: int
    forwarded: bytes


def size(text: object) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


def parts(content: object) -> int:
    """A text, or parts of it as Mistral sends them."""
    if isinstance(content, list):
        return sum(map(parts, content))
    if isinstance(content, dict):
        return sum(parts(content.get(key)) for key in ("text", "thinking"))
    return size(content)


def spoken(message: dict[str, Any]) -> tuple[int, int, int]:
    """Bytes of one delta or message: said, and thought under either name."""
    text = parts(message.get("content")) + size(message.get("refusal"))
    calls = message.get("tool_calls")
    for call in [*(calls if isinstance(calls, list) else []), {"function": message.get("function_call")}]:
        for kind, key in (("function", "arguments"), ("custom", "input")):
            body = call.get(kind) if isinstance(call, dict) else None
            text += size(body.get(key)) if isinstance(body, dict) else 0
    return text, size(message.get("reasoning_content")), size(message.get("reasoning"))


def text_bytes(answer: dict[str, Any]) -> int:
    said = 0
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if not isinstance(choice, dict):
            continue
        said += size(choice.get("text"))
        for kind in ("delta", "message"):
            if isinstance(message := choice.get(kind), dict):
                text, *thoughts = spoken(message)
                said += text + max(thoughts)
    return said


def figure(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**40:
        raise ValueError(value)
    return value


def figures(usage: dict[str, Any]) -> Usage | None:
    if usage.get("prompt_tokens") is None:
        return None
    try:
        prompt, completion = figure(usage["prompt_tokens"]), figure(usage.get("completion_tokens"))
        inside = usage.get("prompt_tokens_details")
        cached = figure(inside.get("cached_tokens")) if isinstance(inside, dict) else 0
        inside = usage.get("completion_tokens_details")
        details = inside if isinstance(inside, dict) else {}
        reasoning, audio = figure(details.get("reasoning_tokens")), figure(details.get("audio_tokens"))
    except ValueError:
        return None
    return prompt, min(cached, prompt), completion, min(reasoning, completion), min(audio, completion)


def load(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Reader:
    """Reads a whole stream at once."""

    def __init__(self) -> None:
        self.frames = self.text_bytes = self.hidden = 0
        self.usage: Usage | None = None
        self.model = ""
        self.done = self.error = False
        self.forwarded = bytearray()

    def judge(self, lines: list[bytes], length: int, whole: bool) -> bool:
        """One block; whether it is to be hidden."""
        data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data"]
        if not data:
            return False
        if length > FRAME_BYTES_PARSED_MAX:
            self.frames += whole
            return False
        text = b"\n".join(data)
        if text.startswith(b"[DONE]"):
            self.done = True
            self.frames += 1
            return False
        answer = load(text)
        if answer is None:
            self.frames += whole
            return False
        self.frames += 1
        self.text_bytes += text_bytes(answer)
        usage, error, model = answer.get("usage"), answer.get("error"), answer.get("model")
        failed = isinstance(error, dict) or (isinstance(error, str) and error != "")
        self.error |= failed
        if isinstance(usage, dict):
            self.usage = figures(usage) or self.usage
        if isinstance(model, str) and not self.model:
            self.model = model.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return isinstance(usage, dict) and answer.get("choices") == [] and not failed and length <= FRAME_BYTES_HELD_MAX

    def read(self, stream: bytes) -> Facts:
        block: list[bytes] = []
        start = 0
        begun = False
        for match in LINE.finditer(stream):
            line, end = match.groups()
            if not block:
                start = match.start()
                if not line or line.startswith(b":"):
                    self.forwarded += match.group()
                    begun = begun or bool(match.group())
                    continue
            if line or not end:
                marked = not begun and not block and line.startswith(b"\xef\xbb\xbf")
                block.append(line[3:] if marked else line)
                if end:
                    continue
                if self.judge(block, match.end() - start, False):
                    self.hidden += 1
                else:
                    self.forwarded += stream[start:]
                break
            if self.judge(block, match.start() - start, True):
                self.hidden += 1
            else:
                self.forwarded += stream[start : match.end()]
            begun = True
            block = []
        return Facts(
            self.frames,
            self.text_bytes,
            self.usage,
            self.model,
            self.done,
            self.error,
            self.hidden,
            bytes(self.forwarded),
        )


def read(stream: bytes) -> Facts:
    """What a stream says, and what of it a client that did not ask for usage gets."""
    return Reader().read(stream)
