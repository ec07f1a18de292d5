"""The wall clock may jump: limits and durations go by BOOTTIME, and only what people read goes by the calendar.

`faketime` is not at hand, and it would shift BOOTTIME as well unless told not to; so the function that reads the wall
clock is shifted instead, with its twin in C. That nothing else reads time is held by tests/house/test_layers.py.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import _fastpath, clock, record
from proxy.call import Principal, UsageEvent
from proxy.errors import Refusal
from proxy.identify import judge
from proxy.identity.keys import Known
from proxy.journal import read_records
from tests.journey.calling import Client, chat
from tests.journey.inside import inside

HOUR_US = 3600 * 1_000_000


class Wall:
    """The wall clock, shifted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift_us = 0
        true = clock.wall_us
        twins = (true, _fastpath.wall_us)

        def shifted() -> int:
            return true() + self.shift_us

        self.now_us = shifted
        for name, module in list(sys.modules.items()):
            if name.startswith("proxy.") and getattr(module, "wall_us", None) in twins:
                monkeypatch.setattr(module, "wall_us", shifted)


@pytest.mark.parametrize("hours", [2, -2, 24 * 365, -24 * 365])
def test_a_jump_of_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """The clock jumps between calls and in the middle of one: no limit is refilled or emptied, no duration is wrong."""
    wall = Wall(monkeypatch)
    limits = {"limits": {"requests_per_minute": 1, "requests_burst": 4}}

    async def story() -> list[UsageEvent]:
        async with inside(tmp_path, tenant=limits) as weir, Client(weir) as client:
            assert (await client.call(chat({"tokens": 1}))).status == 200
            wall.shift_us = hours * HOUR_US
            assert (await client.call(chat({"tokens": 1}))).status == 200
            await client.send(chat({"tokens": 5, "delay_ms": 40}, stream=True))
            _, headers = await client.head()
            wall.shift_us = 0
            assert (await client.rest(headers))[1]
            answer = await client.call(chat({"tokens": 1}))
            assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, "0")
            for shift in (hours, -hours, 0):
                wall.shift_us = shift * HOUR_US
                refused = await client.call(chat())
                assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
                assert 0 < int(refused.headers["retry-after-ms"]) <= 60_000
            await weir.epoch.wait_synced(4)
            found = read_records(weir.epoch.path, 1, 10, 1 << 20).records
            events = [record.decode(payload) for payload in found]
            assert all(isinstance(event, UsageEvent) for event in events)
            return [event for event in events if isinstance(event, UsageEvent)]

    before_us = clock.wall_us()
    events = asyncio.run(story())
    assert [event.call for event in events] == [1, 2, 3, 4]
    for event in events:
        assert 0 <= event.queue_us <= event.first_us <= event.total_us < 60_000_000
    # The row says what the calendar said: an operator who sets the clock sees that he did.
    said = [round((event.started_us - before_us) / HOUR_US) for event in events]
    assert said == [0, hours, hours, 0]


def test_keys_expire_by_the_calendar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's end is a date: before it the key is good, from it on it is not, and a clock set back makes it good."""
    wall = Wall(monkeypatch)
    principal = Principal("acme", "key_x", None, (), None, None, clock.wall_us() + HOUR_US)
    known: Any = Known(principal, 0)
    nothing: Any = None
    call: Any = SimpleNamespace()
    for hours, ended in ((0, False), (2, True), (0, False)):
        wall.shift_us = hours * HOUR_US
        with pytest.raises(Refusal, match="expired_api_key") if ended else nullcontext():
            judge(call, known, None, nothing)
