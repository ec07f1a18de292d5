"""`weir check`: every problem of a configuration, or one line that says what it holds."""

from __future__ import annotations

import argparse
import sys

from proxy.policy.compile import examine
from proxy.policy.snapshot import Policy
from proxy.verbs import config_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir check`."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints problems to standard output, warnings to standard error. 0 when the configuration can be used, else 1."""
    examined = examine(args.config)
    for warning in examined.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for problem in examined.problems:
        print(problem)
    if examined.policy is None:
        return 1
    print(summary(str(args.config), examined.policy))
    return 0


def summary(config: str, policy: Policy) -> str:
    """`config: 2 tenants, 2 plans, …, version …`."""
    counts = [
        (len(policy.tenants), "tenant"),
        (len(policy.plans), "plan"),
        (len(policy.models), "model"),
        (len(policy.upstreams), "upstream"),
    ]
    parts = [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts]
    return f"{config}: {', '.join(parts)}: good; version {policy.version}"
