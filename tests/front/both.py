"""The same conversations with the two fronts of one house: the front as it is, and aiohttp's from the first byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.front.corpus import Steps
from tests.front.talk import PATIENT_TURNS, QUIET_TURNS, Heard, Talk
from tests.journey.inside import Inside

Pair = tuple[Heard, Heard]


def alike(pair: Pair) -> bool:
    """Whether both fronts did the same."""
    return pair[0] == pair[1]


async def both(
    weir: Inside,
    conversations: Sequence[Steps],
    cuts: Sequence[Sequence[int]] = (),
    fine: Callable[[Pair], bool] = alike,
) -> list[Pair]:
    """What is heard of each conversation from the front, and from aiohttp.

    Those that are not fine are held again, with more patience: then it is no matter of who was let run how soon.
    """
    loop = weir.front.loop
    server = await loop.create_server(lambda: weir.front.door(weir.front.tick), "127.0.0.1", 0)
    ports = weir.port, server.sockets[0].getsockname()[1]

    async def hold(numbers: Sequence[int], quiet_turns: int) -> list[Pair]:
        heard = []
        for port in ports:
            some = [conversations[number] for number in numbers]
            heard.append(
                await Talk(weir, port, quiet_turns).hold(some, [cuts[number] for number in numbers] if cuts else ())
            )
        return list(zip(*heard, strict=True))

    try:
        pairs = await hold(range(len(conversations)), QUIET_TURNS)
        for quiet_turns in PATIENT_TURNS:
            differing = [number for number, pair in enumerate(pairs) if not fine(pair)]
            for number, pair in zip(differing, await hold(differing, quiet_turns), strict=True):
                pairs[number] = pair
        return pairs
    finally:
        server.close()
        await server.wait_closed()
