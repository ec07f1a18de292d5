"""Each named place between store, append, ship, commit, acknowledge and prune: the part dies there, the books hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import Variant
from tests.chaos.test_exactly_once import seed_of
from tests.chaos.tour import Tour, failpoints

WITH_REDIS = ("flush.", "keeper.before_ship", "keeper.after_ship")  # places that only a Weir with Redis passes
WITHOUT_REDIS = ("keeper.before_persist", "keeper.after_persist")


def points_of(variant: Variant) -> list[str]:
    """The places that a Weir of this kind passes; what both kinds pass is visited with SQLite alone."""
    if variant == "sqlite":
        return [name for name in failpoints() if not name.startswith(WITH_REDIS)]
    return [name for name in failpoints() if name.startswith(WITH_REDIS)]


def test_the_places_are_known() -> None:
    """Aim: the two tours together visit every failpoint of the sources, and the steps of durability have theirs."""
    visited = points_of("sqlite") + points_of("redis")
    assert sorted(visited) == failpoints()
    needed = {"flush.before_persist", "flush.after_commit", "flush.after_ack", "flush.after_trim", *WITHOUT_REDIS}
    needed |= {"keeper.before_ship", "keeper.after_ship", "keeper.before_prune", "recover.before", "recover.after"}
    assert needed <= set(visited)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", ["sqlite", "redis"])
def test_dying_at_each_place_loses_nothing(variant: Variant, tmp_path: Path) -> None:
    """Aim: a part that dies at any named place leaves exact books; and every place is really reached."""
    tour = Tour(tmp_path, points_of(variant), variant=variant, seed=seed_of(variant))
    report = tour.run()
    print(report)
    assert report.findings == []
    assert tour.silent == []
