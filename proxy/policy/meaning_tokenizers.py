"""Pass 3 for a model's `tokenizer` and `family`: a file that cannot count, and words that would have no effect."""

from __future__ import annotations

from typing import Protocol

from proxy.policy.load import Files


class Wrong(Protocol):
    """Takes a sentence and the path that it is about."""

    def __call__(self, sentence: str, *path: str | int) -> None: ...


def judge_tokenizers(files: Files, wrong: Wrong) -> None:
    """Looks at every model of weir.yaml. A tokenizer's file is read, as a worker will read it."""
    # Imported here: who reads only the process part of the files needs no tokenizer.
    from proxy.tokens.huggingface import PREFIX, complaint

    weir = files.weir
    if weir.value is None:
        return
    for name, model in weir.value.models.items():
        at = ("models", name)
        if model.tokenizer.startswith(PREFIX):
            sentence = complaint(str(files.base / model.tokenizer.removeprefix(PREFIX)))
            if sentence is not None:
                wrong(sentence, *at, "tokenizer")
        if model.family is not None and (model.tokenizer == "estimate" or model.tokenizer.startswith(PREFIX)):
            where = weir.source(*at, "tokenizer")
            wrong(f"has no effect beside the tokenizer at {where}; remove one of the two", *at, "family")
