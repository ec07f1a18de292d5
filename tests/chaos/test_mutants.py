"""The driver finds each broken promise: a test of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import mutants
from tests.chaos.driver import Chaos, Report, Variant
from tests.chaos.mutants import Change
from tests.chaos.test_exactly_once import seed_of

KILL_WORKERS = {"kill worker": 1}
FAILPOINT = "failpoint flush."  # a flusher died, or stopped, where it should
SENT_AGAIN = "the Redis stream lost records"  # as the keeper tells it, once it has seen the stream drained
REDIS_FORGETS = {"kill redis": 1, "kill worker": 2}


def attack(
    directory: Path,
    changes: tuple[Change, ...],
    variant: Variant,
    *,
    cards: dict[str, int],
    point: str = "",
    awaited: str = "",
    follows: str = "",
    requests: int = 300,
    concurrency: int = 24,
) -> Report:
    """A short run against a changed copy of the product; `cards` are the blows, `point` arms a failpoint.

    It goes on until `awaited` has been said: what the mutant must have done for its fault to matter; and when the
    traffic is over, until `follows` has been.
    """
    report = Chaos(
        directory,
        variant=variant,
        requests=requests,
        concurrency=concurrency,
        seed=seed_of(variant),
        cards=cards,
        pause=(0.9, 1.6),
        root=mutants.make(directory, changes),
        failpoints=point,
        awaited=awaited,
        follows=follows,
        segment_bytes=64 * 1024,
        quiet_seconds=5,
        seconds_max=9,
    ).run()
    print(report)
    return report


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("changes", "variant", "cards", "point", "awaited", "says"),
    [
        (mutants.ACKNOWLEDGE_BEFORE_COMMIT, "redis", {}, "flush.before_persist=kill@2", FAILPOINT, "sent again"),
        (mutants.NO_PRIMARY_KEY, "redis", {}, "flush.after_commit=kill@2", FAILPOINT, "double"),
        # Redis dies once a life has ended, and was shipped and pruned, before a flusher could persist it.
        (mutants.PRUNE_AT_SHIP, "forgetful", REDIS_FORGETS, "flush.before_persist=stop", "pruned at ship", "lost"),
        (mutants.FREE_BEFORE_APPEND, "sqlite", KILL_WORKERS, "", mutants.DIED, "lost"),
    ],
    ids=["acknowledge_before_commit", "no_primary_key", "prune_at_ship", "free_before_append"],
)
def test_each_mutant_is_caught(
    changes: tuple[Change, ...],
    variant: Variant,
    cards: dict[str, int],
    point: str,
    awaited: str,
    says: str,
    tmp_path: Path,
) -> None:
    """Aim: a product with one promise broken does not pass, and it is that promise which is named."""
    follows = SENT_AGAIN if says == "sent again" else ""
    report = attack(tmp_path, changes, variant, cards=cards, point=point, awaited=awaited, follows=follows)
    assert any(finding.startswith(says) for finding in report.findings), report


@pytest.mark.timeout(600)
def test_the_death_alone_is_not_what_is_caught(tmp_path: Path) -> None:
    """Aim: the same death in the right order loses nothing; the mutant is caught for its order."""
    report = attack(tmp_path, mutants.APPEND_DIE_FREE, "sqlite", cards=KILL_WORKERS, awaited=mutants.DIED)
    assert report.findings == []
