"""`weir health`: asks the keeper whether this host is ready. The container's health check; needs no other tool."""

from __future__ import annotations

import argparse
import http.client
import sys

from proxy import settings
from proxy.places import called
from proxy.policy.load import PolicyErrors
from proxy.verbs import config_argument

SECONDS_MAX = 3.0  # the answer comes from memory; a keeper that takes longer is not well


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir health`."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what /readyz says. 0 when the host is ready, also when it is ready but degraded; 1 when it is not."""
    try:
        metrics = settings.load(args.config).metrics
    except PolicyErrors as error:
        print(f"weir health: {error}", file=sys.stderr)
        return 1
    connection = http.client.HTTPConnection(called(metrics.host), metrics.port, timeout=SECONDS_MAX)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read(4096).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        print(f"weir health: no answer from {metrics.host}:{metrics.port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    print(text)
    return 0 if answer.status == 200 else 1
