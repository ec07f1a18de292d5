"""What counts the tokens of one model of the policy: exactly, by a HuggingFace file, or by bytes. Pure."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from proxy.bounds import (
    HUGGINGFACE_BYTES_INLINE,
    HUGGINGFACE_BYTES_MAX,
    HUGGINGFACE_STRINGS_MAX,
    TEXT_BYTES_INLINE,
    TOKENIZERS_MAX,
)
from proxy.tokens import chat, encoding, families
from proxy.tokens.calibration import Ratio
from proxy.tokens.estimate import BYTES_PER_TOKEN_MILLI, fixed_tokens, prompt_tokens
from proxy.tokens.huggingface import PREFIX, BadTokenizer, HuggingFace
from proxy.tokens.remembered import Remembered
from proxy.tokens.tools import Unknown

if TYPE_CHECKING:
    from proxy._fastpath import Encoding
    from proxy._scan import Peek
    from proxy.call import Source
    from proxy.policy.snapshot import Model
    from proxy.tokens.families import Family


class Tokenizer(Protocol):
    """One model's and one tenant's. `name` is what people are told; `encoding` counts its answers, None: bytes do."""

    name: str
    reasoning: bool  # the model thinks in tokens that it never sends

    @property
    def encoding(self) -> Encoding | None: ...
    @property
    def bytes_per_token_milli(self) -> int:
        """For what cannot be counted: bytes of a thousand tokens."""

    def prompt(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source]:
        """The tokens of a body's prompt, and whether they are counted or estimated. Any thread may ask.

        What is remembered of tool definitions is the tenant's own: no other can tell by the time whether it was there.
        """

    def prompt_now(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source] | None:
        """The same on the loop: None where that might take longer than the loop can wait. Then ask `prompt`, aside."""

    def learn(self, text_bytes: int, tokens: int) -> None:
        """A text of so many bytes had so many tokens, as the upstream says. The loop's alone."""


class Choice(NamedTuple):
    """Which tokenizer a model has. `kind` is an encoding's name, "file" or "estimate"."""

    kind: str
    path: str = ""  # of a file
    family: str = ""  # of families.yaml, "" where none is known
    reasoning: bool = False
    reason: str = ""  # for people: what decided


class Exact:
    """One of the encodings that Weir has inside, with the arithmetic of the model's family.

    Without a family the text is counted all the same; the marks around messages are then a guess, and a chat is
    estimated.
    """

    bytes_per_token_milli = BYTES_PER_TOKEN_MILLI

    def __init__(self, name: str, family: Family | None, *, reasoning: bool) -> None:
        """Raises BadTable for a table that is damaged."""
        self.name = name
        self.encoding = encoding(name)
        self.reasoning = reasoning
        self._family = family

    def prompt_now(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source] | None:
        room = TEXT_BYTES_INLINE - facts.cost(body)
        if room < 0:
            return None
        if self._family is None:
            return self.prompt(body, facts, endpoint, tenant)
        try:
            anew = facts.tools_cost <= room
            return chat.prompt_tokens(self._family, self.encoding, body, facts, endpoint, tenant, anew=anew)
        except Unknown:
            return None

    def prompt(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source]:
        if self._family is not None:
            return chat.prompt_tokens(self._family, self.encoding, body, facts, endpoint, tenant)
        text, _ = facts.count(body, self.encoding)
        guessed = facts.messages or facts.images or facts.incomplete or facts.unread
        return text + fixed_tokens(facts), "estimated" if guessed else "counted"

    def learn(self, text_bytes: int, tokens: int) -> None:
        """There is nothing to learn for who counts."""


class Estimated:
    """Bytes, at a ratio that the upstream's own figures teach."""

    name = "estimate"
    encoding = None

    def __init__(self, *, reasoning: bool = False) -> None:
        self.reasoning = reasoning
        self._ratio = Ratio()

    @property
    def bytes_per_token_milli(self) -> int:
        return self._ratio.milli

    def prompt(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source]:
        return prompt_tokens(facts, self._ratio.milli), "estimated"

    def prompt_now(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source] | None:
        return self.prompt(body, facts, endpoint, tenant)

    def learn(self, text_bytes: int, tokens: int) -> None:
        self._ratio.learn(text_bytes, tokens)


class FromFile(Estimated):
    """A HuggingFace tokenizer.json for prompts; answers, whose text is not kept, at the ratio learnt.

    A chat is rendered by the model's own template, which the file does not hold: its marks are estimated, and so is the
    sum. A prompt without messages has none of them, and is counted.
    """

    def __init__(self, path: str, *, reasoning: bool = False) -> None:
        super().__init__(reasoning=reasoning)
        self.name = PREFIX + path.rpartition("/")[2]
        self._file = _file(path)

    def prompt_now(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source] | None:
        if not self._file.ready or facts.text_cost > HUGGINGFACE_BYTES_INLINE:
            return None
        return self.prompt(body, facts, endpoint, tenant)

    def prompt(self, body: bytes, facts: Peek, endpoint: str, tenant: str) -> tuple[int, Source]:
        long = facts.string_count > HUGGINGFACE_STRINGS_MAX or facts.text_bytes > HUGGINGFACE_BYTES_MAX
        if long or facts.incomplete:
            return super().prompt(body, facts, endpoint, tenant)
        try:
            tokens = self._file.count(facts.texts(body)) + fixed_tokens(facts)
        except BadTokenizer:
            # It was good when the policy was read, and is not there any more.
            return super().prompt(body, facts, endpoint, tenant)
        return tokens, "estimated" if facts.messages or facts.images else "counted"


@cache
def _file(path: str) -> HuggingFace:
    """One in a process, however many models name it: the large ones take a hundred megabytes."""
    return HuggingFace(path)


def choose(model: Model) -> Choice:
    """What the policy says of a model; where it says nothing, what the names of its targets and its own say."""
    written = model.tokenizer
    family, by = _family(model)
    name, reasoning = ("", False) if family is None else (family.name, family.reasoning)
    if written.startswith(PREFIX):
        return Choice("file", path=written.removeprefix(PREFIX), reasoning=reasoning, reason=model.tokenizer_source)
    if written == "estimate":
        return Choice(written, reasoning=reasoning, reason=model.tokenizer_source)
    if written != "auto":
        return Choice(written, family=name, reasoning=reasoning, reason=model.tokenizer_source)
    if family is None:
        return Choice("estimate", reason="no family of models is known by its names")
    return Choice(family.encoding, family=name, reasoning=reasoning, reason=by)


def _family(model: Model) -> tuple[Family | None, str]:
    """The family and what says so: the policy, or the first name that one is known by."""
    if model.family is not None:
        return families.named(model.family), "named in its entry"
    for name in (*(target.model or model.name for target in model.targets if target.weight), model.name):
        family = families.find(name)
        if family is not None:
            return family, f"by the name {name}"
    return None, ""


class Tokenizers:
    """Those in use in one worker. What a tenant's calls teach of a model holds for that tenant's calls alone."""

    def __init__(self) -> None:
        self._known: Remembered[str, tuple[Choice, Tokenizer]] = Remembered(TOKENIZERS_MAX)

    def of(self, model: Model, tenant: str) -> Tokenizer:
        """A tenant's for a model, the same as before unless the policy has chosen another one. Raises as
        `tokenizer_of`.
        """
        choice = choose(model)._replace(reason="")  # that its line has moved is no other choice
        known = self._known.get(tenant, model.name)
        if known is None or known[0] != choice:
            known = choice, tokenizer_of(choice)
            self._known.put(tenant, model.name, known)
        return known[1]


def tokenizer_of(choice: Choice) -> Tokenizer:
    """A new tokenizer, as chosen. A HuggingFace file is read where it is first needed. Raises BadTable for a damaged
    table of an encoding.
    """
    if choice.kind == "file":
        return FromFile(choice.path, reasoning=choice.reasoning)
    if choice.kind == "estimate":
        return Estimated(reasoning=choice.reasoning)
    return Exact(choice.kind, families.named(choice.family), reasoning=choice.reasoning)
