"""Failpoints kill or freeze where and when they are told to, and are nothing otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from proxy import failpoint

CODE = (
    "from proxy import failpoint\nfor _ in range(5): failpoint.reach('a'); failpoint.reach('b'); print(1, flush=True)"
)


@pytest.mark.parametrize(
    ("value", "turns", "code"),
    [("", 5, 0), ("other=kill", 5, 0), ("a=kill", 0, -signal.SIGKILL), (" a = kill@9, b=kill@3", 2, -signal.SIGKILL)],
)
def test_a_process_dies_where_it_is_told_to(value: str, turns: int, code: int) -> None:
    """By name and count, in a real process."""
    environment = dict(os.environ, WEIR_FAILPOINTS=value)
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout.count(b"1")) == (code, turns)
    assert done.stderr.count(b"failpoint ") == (1 if code else 0), "it says by which place it died"


@pytest.mark.parametrize("value", ["a", "a=", "a=die", "=kill", "a=kill@", "a=kill@0", "a=kill@x"])
def test_a_misspelt_failpoint_is_refused(value: str) -> None:
    """A test that kills nothing by a typing error would prove nothing."""
    with pytest.raises(ValueError, match="WEIR_FAILPOINTS"):
        failpoint.parse(value)
