"""What counts the tokens of one model of the policy: exactly, by a HuggingFace file, or by bytes. Pure."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from proxy.bounds import HUGGINGFACE_BYTES_INLINE, HUGGINGFACE_BYTES_MAX
from proxy.tokens.calibration import Ratio
from proxy.tokens.estimate import fixed_tokens, prompt_tokens
from proxy.tokens.huggingface import PREFIX, BadTokenizer, HuggingFace

if TYPE_CHECKING:
    from proxy._fastpath import Encoding
    from proxy._scan import Peek
    from proxy.call import Source
    from proxy.policy.snapshot import Model


class Tokenizer(Protocol):
    """One model's. `name` is what people are told; `encoding` counts its answers, None where bytes must do."""

    name: str
    encoding: Encoding | None
    reasoning: bool  # the model thinks in tokens that it never sends

    @property
    def bytes_per_token_milli(self) -> int:
        """For what cannot be counted: bytes of a thousand tokens."""

    def inline(self, facts: Peek) -> bool:
        """Whether `prompt` takes so little time that the loop can wait for it."""

    def prompt(self, body: bytes, facts: Peek, endpoint: str) -> tuple[int, Source]:
        """The tokens of a body's prompt, and whether they are counted or estimated. Any thread may ask."""

    def learn(self, text_bytes: int, tokens: int) -> None:
        """A text of so many bytes had so many tokens, as the upstream says."""


class Choice(NamedTuple):
    """Which tokenizer a model has. `kind` is an encoding's name, "file" or "estimate"."""

    kind: str
    path: str = ""
    reason: str = ""  # for people: what decided


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

    def inline(self, facts: Peek) -> bool:
        return True

    def prompt(self, body: bytes, facts: Peek, endpoint: str) -> tuple[int, Source]:
        return prompt_tokens(facts, self._ratio.milli), "estimated"

    def learn(self, text_bytes: int, tokens: int) -> None:
        self._ratio.learn(text_bytes, tokens)


class FromFile(Estimated):
    """A HuggingFace tokenizer.json for prompts; answers, whose text is not kept, at the ratio learnt.

    A chat is rendered by the model's own template, which the file does not hold: its marks are estimated, and so is the
    sum. A prompt without messages has none of them, and is counted.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = PREFIX + path.rpartition("/")[2]
        self._file = _file(path)

    def inline(self, facts: Peek) -> bool:
        return self._file.ready and facts.text_bytes <= HUGGINGFACE_BYTES_INLINE

    def prompt(self, body: bytes, facts: Peek, endpoint: str) -> tuple[int, Source]:
        if facts.incomplete or facts.text_bytes > HUGGINGFACE_BYTES_MAX:
            return super().prompt(body, facts, endpoint)
        try:
            tokens = self._file.count(facts.texts(body)) + fixed_tokens(facts)
        except BadTokenizer:
            # It was good when the policy was read, and is not there any more.
            return super().prompt(body, facts, endpoint)
        return tokens, "estimated" if facts.messages or facts.images else "counted"


@cache
def _file(path: str) -> HuggingFace:
    """One in a process, however many models name it: the large ones take a hundred megabytes."""
    return HuggingFace(path)


def choose(model: Model) -> Choice:
    """What the policy says of a model, put into a choice."""
    written = model.tokenizer
    if written.startswith(PREFIX):
        return Choice("file", path=written.removeprefix(PREFIX), reason=model.tokenizer_source)
    return Choice("estimate")


def tokenizer_of(choice: Choice) -> Tokenizer:
    """A new tokenizer, as chosen. Raises nothing: a file is read where it is first needed."""
    return FromFile(choice.path) if choice.kind == "file" else Estimated()
