"""What is said of each metric."""

from __future__ import annotations

from typing import Literal, NamedTuple

Type = Literal["counter", "gauge", "histogram"]
Home = Literal["cells", "keeper"]


class Family(NamedTuple):
    """One metric: `labels` in the order in which `Counters.series` takes their values."""

    name: str
    type: Type
    labels: tuple[str, ...]
    help: str
    advice: str
    home: Home = "cells"
