"""`weir tokens`: how many tokens a text or a request has, by what would reserve them. Needs no running Weir."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from proxy import tokens
from proxy._fastpath import BadTable
from proxy._scan import BadBody, peek
from proxy.errors import Refusal
from proxy.policy.compile import compile_policy
from proxy.policy.effective import find_model
from proxy.policy.problems import PolicyErrors
from proxy.tokenize import endpoint_of
from proxy.tokens.tokenizer import choose, tokenizer_of
from proxy.verbs import config_argument

DONE, CANNOT = 0, 2  # exit codes


class Wrong(Exception):
    """It cannot be counted; the text says why and what would be right."""


class Counted(NamedTuple):
    """The answer. `reason`: what decided on the tokenizer."""

    tokens: int
    source: str
    tokenizer: str
    reason: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir tokens`."""
    parser.add_argument("text", nargs="?", help="the text; without it, or --file, standard input")
    parser.add_argument("--file", type=Path, metavar="PATH", help="a file of UTF-8 text")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--model", metavar="NAME", help="as clients name it; the policy says what counts it")
    how.add_argument("--encoding", choices=sorted(tokens.ENCODINGS), help="whatever the policy says")
    parser.add_argument("--request", action="store_true", help="the text is the JSON body of a call to --model")
    parser.add_argument("--json", action="store_true", help="for programs")
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the count. 0 done, 2 when it cannot be told."""
    try:
        text = _text(args)
        found = _by_encoding(args, text) if args.encoding else _by_model(args, text)
    except (Wrong, PolicyErrors, BadTable) as error:
        print(f"weir tokens: {error}", file=sys.stderr)
        return CANNOT
    if args.json:
        answer = {
            "object": "tokens",
            "model": args.model,
            "tokens": found.tokens,
            "source": found.source,
            "tokenizer": found.tokenizer,
        }
        print(json.dumps(answer))
    else:
        why = f" ({found.reason})" if found.reason else ""
        how = "from its bytes" if found.tokenizer == "estimate" else f"by {found.tokenizer}"
        print(f"{found.tokens} token{'' if found.tokens == 1 else 's'}, {found.source} {how}{why}")
    return DONE


def _text(args: argparse.Namespace) -> bytes:
    """The text in UTF-8. Raises Wrong."""
    if args.text is not None and args.file is not None:
        raise Wrong("a text and --file; give one of the two")
    if args.text is not None:
        # An argument that is no UTF-8 comes as lone surrogates.
        raw: bytes = args.text.encode("utf-8", "surrogateescape")
    elif args.file is not None:
        try:
            raw = args.file.read_bytes()
        except OSError as error:
            raise Wrong(f"{args.file} cannot be read: {error.strerror}") from None
    else:
        raw = sys.stdin.buffer.read()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Wrong(f"the text is not UTF-8: byte {error.start} begins no character") from None
    return raw


def _by_encoding(args: argparse.Namespace, text: bytes) -> Counted:
    if args.request:
        raise Wrong("--request is counted as its model is; give --model in place of --encoding")
    return Counted(tokens.encoding(args.encoding).count(text), "counted", args.encoding, "")


def _by_model(args: argparse.Namespace, text: bytes) -> Counted:
    model = find_model(compile_policy(args.config), args.model)
    if model is None:
        raise Wrong(f"no entry in models serves {args.model}; `weir check` reads {args.config / 'weir.yaml'}")
    body = text if args.request else json.dumps({"model": args.model, "input": text.decode()}).encode()
    try:
        facts = peek(body)
        endpoint = endpoint_of(facts)
    except BadBody as error:
        raise Wrong(f"the body is no request: {error.args[1]}") from None
    except Refusal as refusal:
        raise Wrong(refusal.message) from None
    choice = choose(model)
    tokenizer = tokenizer_of(choice)
    count, source = tokenizer.prompt(body, facts, endpoint, "")
    return Counted(count, source, tokenizer.name, choice.reason)
