"""What the tests' own gateway promises to whoever starts several of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.world.gateway import PORTS, free_port, ports_to_give


def test_no_port_is_handed_out_twice() -> None:
    """Aim: whoever asks at the same time, in whatever process, gets a port of his own, and no connection takes it."""
    with ThreadPoolExecutor(8) as pool:
        ports = list(pool.map(lambda _: free_port(), range(200)))
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize(
    ("kernels", "given"),
    [
        ((32_768, 60_999), (32_768 - PORTS, PORTS)),
        ((9_000, 65_535), (1_025, 7_975)),
        ((1_024, 50_000), (50_001, PORTS)),
        ((1_024, 60_000), (60_001, 5_535)),
        ((1_024, 65_535), (20_000, PORTS)),
    ],
    ids=str,
)
def test_ports_are_not_the_kernels_own(kernels: tuple[int, int], given: tuple[int, int]) -> None:
    """Aim: wherever the kernel takes its own from, tests draw below or above; only where it has all do they share."""
    first, count = ports_to_give(*kernels)
    assert (first, count) == given
    assert first > 1024
    assert first + count <= 65_536
