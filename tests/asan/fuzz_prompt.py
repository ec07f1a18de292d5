"""Random prompts through the count of their tokens: strings, calls, tools, images, on their own body and on others."""

from __future__ import annotations

import argparse
import base64
import json
import random
import time

from proxy import _scan
from proxy._scan import BadBody, peek
from proxy.tokens import chat, encoding, families

JSON_BYTES = b'{}[],:"\\/bfnrtu0123456789abcdefEe+-. \t\n\r\x00\x1f\x7f\x80\xc3\xa9\xed\xa0\xe2\x82\xf0\x9f\xf4\xff'
KEYS = (
    *("role", "name", "content", "text", "function_call", "tool_calls", "function", "custom", "arguments", "input"),
    *("image_url", "url", "detail", "file", "input_audio", "type", "Name", "\u017f"),
)
OUTER = ("messages", "prompt", "input", "suffix", "tools", "functions", "tool_choice", "response_format", "model")
SCHEMA = ("type", "properties", "items", "enum", "required", "description", "name", "function", "$ref", "anyOf")
HEADERS = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x04f\x00\x00\x01\xe8",
    b"GIF89a\x10\x00\x20\x00",
    b"RIFF\x00\x00\x00\x00WEBPVP8L\x00\x00\x00\x00\x2f\x01\x02\x03\x04\x05\x06\x07\x08\x09",
    b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08\x00\x10\x00\x20\x03",
)
MODELS = ("gpt-4o", "gpt-4.1-mini", "gpt-4", "o3-mini", "gpt-5.4", "gpt-oss-20b", "text-embedding-3-small")


def text(chance: random.Random) -> str:
    piece = chance.choice(["", "a", "words ", "\n", '"', "\\u0041", "é", "🎉", "\x01", "user", "tool", "system", "low"])
    if chance.random() < 0.05:
        header = chance.choice(HEADERS) + chance.randbytes(chance.randrange(40))
        return "data:image/png;base64," + base64.b64encode(header).decode()
    return piece * chance.choice([1] * 40 + [3, 3, 40, 1500])


def tree(chance: random.Random, keys: tuple[str, ...], depth: int = 0) -> object:
    match chance.randrange(10 if depth < 6 else 5):
        case 0:
            return chance.choice([None, True, 1, -0.5, 10**20, [], {}])
        case 1 | 2 | 3 | 4:
            return text(chance)
        case 5 | 6:
            return [tree(chance, keys, depth + 1) for _ in range(chance.choice([1, 2, 5]))]
        case _:
            return {chance.choice(keys): tree(chance, keys, depth + 1) for _ in range(chance.randrange(5))}


def made(chance: random.Random) -> bytes:
    """A body with these keys, or something near one."""
    value = {
        key: tree(chance, SCHEMA if "o" in key[:4] else KEYS) for key in chance.sample(OUTER, chance.randrange(1, 5))
    }
    value["messages"] = [tree(chance, KEYS, 2) for _ in range(chance.choice([0, 1, 2, 10]))]
    value["model"] = "m"
    body = bytearray(json.dumps(value, ensure_ascii=chance.random() < 0.5).encode())
    for _ in range(chance.choice([0, 0, 0, 1, 3])):
        at, to = sorted((chance.randrange(len(body) + 1), chance.randrange(len(body) + 1)))
        if chance.random() < 0.5:
            body[at : at + 1] = bytes([chance.choice(JSON_BYTES)])
        else:
            del body[at : min(to, at + 20)]
    return bytes(body)


def fuzz(chance: random.Random) -> None:
    body = made(chance)
    try:
        facts = peek(body)
    except BadBody:
        return
    counter = encoding(chance.choice(["o200k_base", "cl100k_base"]))
    texts = facts.texts(body)
    assert facts.count(body, counter)[0] == sum(map(counter.count, texts)), body
    assert len(facts.strings) == len(texts) + len(facts.image_urls())
    other = bytearray(body)
    for _ in range(chance.randrange(20)):
        other[chance.randrange(len(other))] = chance.choice(JSON_BYTES)
    other[facts.end] = ord("}")
    for one in (body, bytes(other)):
        facts.texts(one)
        facts.calls(one)
        facts.count_line_end(one, counter)
        facts.cost(one)
        facts.count(one, counter)
        facts.count_calls(one, counter, chance.choice([b"", b"functions.", b"x" * 5000]))
        family = families.find(chance.choice(MODELS))
        assert family is not None
        endpoint = chance.choice(["chat.completions", "completions", "embeddings"])
        assert chat.prompt_tokens(family, encoding(family.encoding), one, facts, endpoint, "acme")[0] >= 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = parser.parse_args()
    print(f"fuzz_prompt: seed {chosen.seed}, {_scan.__file__}")
    chance = random.Random(chosen.seed)
    end, rounds = time.monotonic() + chosen.seconds, 0
    while time.monotonic() < end:
        rounds += 1
        fuzz(chance)
    print(f"fuzz_prompt: {rounds} rounds")


if __name__ == "__main__":
    main()
