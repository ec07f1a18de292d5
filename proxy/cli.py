"""The command `weir`: verbs only. Each verb is a module of `proxy/verbs/` with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from proxy import __version__

VERBS = {
    "run": "everything on this machine: proxy, keeper, flusher, admin API; migrates the database",
    "proxy": "supervisor, workers and keeper alone",
    "flush": "the flusher alone: Redis streams into the database",
    "control": "the admin API alone",
    "check": "print every problem of the configuration",
    "explain": "which rule of which file and line decides for a key and a model",
    "keys": "create, list, rotate and revoke API keys",
    "admin": "the first administrator; who is what where: invite, members, grant, revoke",
    "audit": "who changed what; whether the record of it is whole",
    "tokens": "how many tokens a text or a request has",
    "usage": "who used which model, and what it cost",
    "reload": "take the changed policy into use, whole or not at all",
    "restart": "replace all workers one by one, losing nothing",
    "health": "ask the keeper whether this host is ready",
    "demo": "the built-in demo upstream",
}
# Parts that the supervisor starts. They are not for people.
PARTS = {"worker": "one proxy worker", "keeper": "the host's housekeeping"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns its exit code: 0 done, 1 not, 2 a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in arguments if not word.startswith("-")), "")
    try:
        if asked in ("run", "proxy"):
            _outlive_early_signals()
        chosen = _parser(asked).parse_args(arguments)
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        if asked in PARTS:
            raise  # nobody mistyped anything: the log shall say where it was
        print(f"weir {asked}: {error}", file=sys.stderr)
        return 1


def _parser(asked: str) -> argparse.ArgumentParser:
    """Every verb by name, and the one that is asked for with its arguments."""
    parser = argparse.ArgumentParser(
        prog="weir", description="Meter, limit and record LLM calls.", formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"weir {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, text in {**VERBS, **PARTS}.items():
        description = f"{text[0].upper()}{text[1:]}."
        if verb in VERBS:
            sub = verbs.add_parser(verb, help=text, description=description)
        else:  # without `help` it is not listed; argparse.SUPPRESS would be shown as that word
            sub = verbs.add_parser(verb, description=description)
        if verb == asked:
            # Only this one is imported: `weir keys` must not pay for the proxy.
            module = importlib.import_module(f"proxy.verbs.{verb}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _outlive_early_signals() -> None:
    """A wish to reload or restart must not kill what is only just starting, and will do both by starting.

    A handler that does nothing, and not SIG_IGN: that one would be inherited by the parts. Where there is a terminal,
    SIGHUP says that it was closed.
    """
    signal.signal(signal.SIGUSR2, _nothing)
    if sys.stdin is None or not sys.stdin.isatty():
        signal.signal(signal.SIGHUP, _nothing)


def _nothing(number: int, frame: FrameType | None) -> None:
    return None
