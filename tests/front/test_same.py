"""Both fronts say the same to every conversation of the corpus, and do the same for it.

What may differ stands in `DIFFERENT` with its reason.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.front.both import Pair, both
from tests.front.corpus import BODY, CONVERSATIONS, PARTS, SMUGGLED, STREAM, get, post
from tests.front.talk import Heard
from tests.journey.inside import inside
from tests.wire.rig import LOOPS, run

_TYPE = "refused with the same status, by the journey, which names the header, and keeps the connection"
_LINES = "aiohttp takes 128 lines of headers; the front counts the head's bytes alone"
DIFFERENT = {
    "line b'content-type: application/json'": _TYPE,
    "line b'content-type: text/plain'": _TYPE,
    "begins with 200 lines": _LINES,
    "a request, then 200 lines": _LINES,
}
SEED = 20_261


@pytest.fixture(scope="module", params=LOOPS)
def heard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Every conversation of the corpus, held with both."""
    found: dict[str, Pair] = {}

    async def main() -> None:
        async with inside(tmp_path_factory.mktemp("same")) as weir:
            same = [name for name in CONVERSATIONS if name not in DIFFERENT]
            found.update(zip(same, await both(weir, [CONVERSATIONS[name] for name in same]), strict=True))
            different = await both(weir, [CONVERSATIONS[name] for name in DIFFERENT], fine=lambda pair: True)
            found.update(zip(DIFFERENT, different, strict=True))

    run(request.param, main)
    return found


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_both_fronts_say_the_same(heard: dict[str, Pair], name: str) -> None:
    """Answers to the byte but for made ids, what the upstream was asked, the rows, whether the connection stands."""
    ours, theirs = heard[name]
    if name in DIFFERENT:
        assert ours != theirs, "they are alike now: take it from the list"
        assert DIFFERENT[name] != _TYPE or ours.answers[0][0] == theirs.answers[0][0]
    else:
        assert ours == theirs


def test_the_corpus_is_alive(heard: dict[str, Pair]) -> None:
    """The conversations get somewhere: every kind of answer occurs, and hundreds of calls reach the upstream."""
    said = [ours for ours, _ in heard.values()]
    statuses = {answer[0].split()[1] for one in said for answer in one.answers}
    assert statuses >= {b"100", b"200", b"400", b"401", b"403", b"404", b"405", b"413", b"415", b"417", b"431"}
    assert sum(len(one.asked) for one in said) > 400
    assert sum(len(one.rows) for one in said) > 400
    assert {one.open for one in said} == {True, False}
    assert sum(bool(one.probed) for one in said) > 200


def test_nothing_is_smuggled(heard: dict[str, Pair]) -> None:
    """Two lengths for one body, or a length that is no number: one refusal, and nothing behind it is read."""
    names = [name for name in CONVERSATIONS if name.startswith(("coding", "lengths")) and "length" in name]
    names += [f"length {value!r}" for value in (b"+%b", b"-%b", b"%b,%b", b"0x%b", b"%b;", b"18446744073709551616")]
    for name in names:
        ours = heard[name][0]
        if name.startswith("coding") and ours.answers[0][0] == b"HTTP/1.1 200 OK":
            # A name that is no Transfer-Encoding, or none that counts: the length alone says where the body ends.
            assert "by the name b'transfer_encoding'" in name, name
            continue
        assert [answer[0].split()[1][:1] for answer in ours.answers] == [b"4"] or b" 501 " in ours.answers[0][0], name
        assert not ours.open, name
        assert not ours.asked, name


def cut_everywhere(data: bytes) -> list[list[int]]:
    """Every way to cut these bytes in two."""
    return [[at] for at in range(1, len(data))]


def settled(heard: Heard) -> Heard:
    """Without `100 Continue`: who sends the body with the head is not told to go on."""
    return heard._replace(answers=tuple(answer for answer in heard.answers if b" 100 " not in answer[0]))


@pytest.mark.parametrize("kind", LOOPS)
def test_in_pieces(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same bytes in other pieces are the same conversation: cut in two at every byte, byte by byte, at random."""
    chance = random.Random(SEED)
    long = post(body=STREAM) + PARTS["chunked"] + get(b"/v1/models?x") + post()
    samples: list[tuple[bytes, Sequence[Sequence[int]]]] = [
        (data, cut_everywhere(data)) for data in (get(), post(), post(body=b"nonsense"), PARTS["cl and te"])
    ]
    every = [post() + get(), post(body=BODY + b" " * 40), b"\r\n" + post(), get() + PARTS["query"] + SMUGGLED]
    every += [PARTS["chunked"], PARTS["expecting"], PARTS["1.0"], PARTS["broken"], PARTS["folded"]]
    samples += [(data, [range(1, len(data))]) for data in every]
    samples.append((long, [sorted(chance.sample(range(1, len(long)), chance.randrange(1, 12))) for _ in range(60)]))

    async def main() -> None:
        async with inside(tmp_path_factory.mktemp("pieces")) as weir:
            for data, cuts in samples:
                ((first, _),) = await both(weir, [[data]])
                whole = settled(first)

                def fine(pair: Pair, whole: Heard = whole) -> bool:
                    return settled(pair[0]) == settled(pair[1]) == whole

                for cut, pair in zip(cuts, await both(weir, [[data]] * len(cuts), cuts, fine), strict=True):
                    assert fine(pair), (data, cut, whole, pair)

    run(kind, main)
