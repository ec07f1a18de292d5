"""A HuggingFace tokenizer.json: counted as the package counts it, and refused with one sentence where it is none."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from proxy._scan import Peek, peek
from proxy.bounds import HUGGINGFACE_BYTES_INLINE, HUGGINGFACE_BYTES_MAX, HUGGINGFACE_STRINGS_MAX
from proxy.tokens import huggingface
from proxy.tokens.huggingface import BadTokenizer, HuggingFace, complaint, read
from proxy.tokens.tokenizer import FromFile

TEXTS = ["", "Hello, world", "Grüße aus Köln", "你好，世界", "a" * 300, " \n\t ", "def f(x):\n    return x"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small tokenizer.json, trained here: byte-level, with a truncation that a count must not obey."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = Path(__file__).read_text("utf-8")
    made.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    )
    made.enable_truncation(max_length=4)
    where = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(where))
    return str(where)


def counted(path: str, text: str) -> int:
    """By the package's plain face, without what the file says of truncation."""
    one = tokenizers.Tokenizer.from_file(path)
    one.no_truncation()
    return len(one.encode(text, add_special_tokens=False).ids)


def test_it_counts_as_the_package_does(path: str) -> None:
    """Each text by itself, none cut, no special tokens; bytes that are no UTF-8 are U+FFFD."""
    mine = HuggingFace(path)
    for text in TEXTS:
        assert mine.count([text.encode()]) == counted(path, text)
    assert mine.count([text.encode() for text in TEXTS]) == sum(counted(path, text) for text in TEXTS)
    assert mine.count([b"a\xffb"]) == counted(path, "a\ufffdb")


def test_other_threads_run_meanwhile(path: str) -> None:
    """A long count lets go of the GIL: another thread gets its turn before it is done."""
    mine = HuggingFace(path)
    mine.count([b"warm"])
    begun, turns, done = threading.Event(), 0, False

    def count() -> None:
        nonlocal done
        begun.set()
        mine.count([b"some words of a text " * 100_000])
        done = True

    thread = threading.Thread(target=count)
    thread.start()
    begun.wait(120)
    interval = sys.getswitchinterval()
    while not done:
        turns += 1
        os.sched_yield()
    thread.join(120)
    # With the GIL held to the end this thread would have had a turn or two.
    assert turns > 100, (turns, interval)


def test_a_prompt_of_text_is_counted_and_a_chat_is_estimated(path: str) -> None:
    """The text of a completion is all there is to it; a chat is rendered by a template that the file does not hold."""
    made = FromFile(path)
    for body, endpoint, source in (
        ({"model": "m", "prompt": "Hello, world"}, "completions", "counted"),
        ({"model": "m", "input": ["Hello, world", "你好"]}, "embeddings", "counted"),
        ({"model": "m", "messages": [{"role": "user", "content": "Hello, world"}]}, "chat.completions", "estimated"),
    ):
        raw = json.dumps(body, ensure_ascii=False).encode()
        facts = peek(raw)
        tokens, said = made.prompt(raw, facts, endpoint, "acme")
        least = sum(counted(path, text.decode()) for text in facts.texts(raw))
        assert said == source
        assert tokens == least + 4 * facts.messages


def test_a_long_text_is_not_for_the_loop(path: str, tmp_path: Path) -> None:
    """Unread files and texts above the bound go to a thread; far longer ones are estimated by the ratio learnt."""
    fresh = tmp_path / "tokenizer.json"  # the other tests have read theirs
    fresh.write_bytes(Path(path).read_bytes())
    made = FromFile(str(fresh))

    def asked(size: int) -> tuple[bytes, Peek]:
        raw = json.dumps({"model": "m", "input": "x" * size}).encode()
        return raw, peek(raw)

    raw, facts = asked(10)
    assert made.prompt_now(raw, facts, "embeddings", "acme") is None
    counted_aside = made.prompt(raw, facts, "embeddings", "acme")
    assert made.prompt_now(raw, facts, "embeddings", "acme") == counted_aside
    for texts in (["x" * (HUGGINGFACE_BYTES_INLINE + 1)], [""] * HUGGINGFACE_BYTES_INLINE):
        raw = json.dumps({"model": "m", "input": texts}).encode()
        assert made.prompt_now(raw, peek(raw), "embeddings", "acme") is None
        assert made.prompt(raw, peek(raw), "embeddings", "acme")[1] == "counted"
    raw = json.dumps({"model": "m", "input": ["ab"] * (HUGGINGFACE_STRINGS_MAX + 1)}).encode()
    assert made.prompt(raw, peek(raw), "embeddings", "acme") == (
        -(-2 * (HUGGINGFACE_STRINGS_MAX + 1) // 4),
        "estimated",
    )
    raw, facts = asked(HUGGINGFACE_BYTES_MAX + 1)
    assert made.prompt(raw, facts, "embeddings", "acme") == (-(-(HUGGINGFACE_BYTES_MAX + 1) // 4), "estimated")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no file "),
        ("", "is no tokenizer.json"),
        ("{}", "is no tokenizer.json"),
        ('{"version": "1.0"', "is no tokenizer.json"),
        ("\x00\x01", "is no tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None, sentence: str) -> None:
    """One sentence with the path; a file that is mended is taken without anything being started anew."""
    where = tmp_path / "tokenizer.json"
    if content is not None:
        where.write_text(content)
    said = complaint(str(where))
    assert said is not None
    assert sentence in said
    assert str(where) in said
    assert "\n" not in said
    with pytest.raises(BadTokenizer, match=r"no file|is no tokenizer"):
        HuggingFace(str(where)).count([b"x"])


def test_a_good_file_is_read_once_until_it_changes(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`weir reload` does not read large files again for nothing, and sees when one has become bad."""
    reads = []
    monkeypatch.setattr(huggingface, "read", lambda name: (reads.append(name), read(name)))
    where = tmp_path / "tokenizer.json"
    where.write_bytes(Path(path).read_bytes())
    assert [complaint(str(where)) for _ in range(3)] == [None] * 3
    assert len(reads) == 1
    where.write_text("{}")
    assert complaint(str(where)) is not None
    assert complaint(str(where)) is not None
    where.write_bytes(Path(path).read_bytes())
    assert complaint(str(where)) is None


def test_without_the_package_it_says_what_to_install(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional; who names a tokenizer.json without it is told."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadTokenizer, match=r"pip install 'weir-gateway\[tokenizers\]'"):
        read(path)


def test_a_file_that_vanished_is_estimated(tmp_path: Path) -> None:
    """It was there when the policy was read; a call is not refused because it has gone since."""
    raw = b'{"model":"m","prompt":"12345678"}'
    assert FromFile(str(tmp_path / "gone.json")).prompt(raw, peek(raw), "completions", "acme") == (2, "estimated")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    """No tokenizer.json is that long; a worker's memory is not for finding out."""
    where = tmp_path / "tokenizer.json"
    with where.open("wb") as file:
        file.truncate(huggingface.TOKENIZER_FILE_BYTES_MAX + 1)
    said = complaint(str(where))
    assert said is not None
    assert "has at most" in said
