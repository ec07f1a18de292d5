"""Pass 3 for a model's `tokenizer` and `family`: a file that cannot count, unknown names, words without effect."""

from __future__ import annotations

from typing import Protocol

from proxy.policy import schema
from proxy.policy.load import Files
from proxy.policy.problems import instead


class Say(Protocol):
    """Takes a sentence and the path that it is about."""

    def __call__(self, sentence: str, *path: str | int) -> None: ...


def judge_tokenizers(files: Files, wrong: Say, doubtful: Say) -> None:
    """Looks at every model of weir.yaml. A tokenizer's file is read, as a worker will read it."""
    # Imported here: who reads only the process part of the files needs no tokenizer.
    from proxy.tokens import families
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
        if model.family is None:
            continue
        if model.tokenizer == "estimate" or model.tokenizer.startswith(PREFIX):
            where = weir.source(*at, "tokenizer")
            wrong(f"has no effect beside the tokenizer at {where}; remove one of the two", *at, "family")
        elif families.named(model.family) is None:
            known = families.known().by_name
            wrong(f"unknown family {model.family}; {instead(model.family, known, 'none is known')}", *at, "family")
    for name, model in weir.value.models.items():
        found = _encodings(name, model)
        if len(set(found.values())) > 1 and model.tokenizer == "auto" and model.family is None:
            said = " and ".join(f"{target} in {encoding}" for target, encoding in found.items())
            doubtful(f"its targets count differently, {said}; name a tokenizer", "models", name)


def _encodings(name: str, model: schema.Model) -> dict[str, str]:
    """The encodings of the targets whose family is known, by the upstream's name of the model."""
    from proxy.tokens import families

    names = [target.model or name for target in model.targets or []]
    known = {each: families.find(each) for each in names}
    return {each: family.encoding for each, family in known.items() if family is not None}
