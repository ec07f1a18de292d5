"""What may be said of a key or a person, whoever says it: the command line or the admin API. Pure.

`where` names the place in the caller's own words, such as `--model` or `$.models`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any, get_args
from unicodedata import is_normalized

from proxy import bounds
from proxy.identity.roles import SERVICE_RIGHTS
from proxy.policy.process import Endpoint
from proxy.policy.snapshot import Policy
from proxy.store.keys import PERIODS

ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
RIGHTS: tuple[str, ...] = tuple(sorted(SERVICE_RIGHTS))
AMOUNTS = ("requests_per_minute", "tokens_per_minute", "concurrency", "budget_tokens")


class Wrong(Exception):
    """What is asked for cannot be done; the text says where it is wrong and what would be right."""


def text(value: str | None, where: str, bytes_max: int = bounds.KEY_TEXT_BYTES_MAX) -> str | None:
    """A word for people. Two that look the same are the same, as far as that can be had: people compare by eye."""
    if value is None:
        return None
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > bytes_max:
        raise Wrong(f"{where}: {size} bytes; at most {bytes_max}")
    _shown(value, where)
    if value != value.strip():
        raise Wrong(f"{where} {value!r}: begins or ends with a space")
    if not is_normalized("NFC", value):
        raise Wrong(f"{where} {value!r}: has letters and their marks apart; write it in Unicode's form NFC")
    return value


def _shown(value: str, where: str) -> None:
    if not value.isprintable():  # what moves a cursor, or turns the line round, could show what is not there
        raise Wrong(f"{where} {value[:100]!a}: has a character that cannot be shown")


def name(value: str, where: str) -> str:
    """A person's name."""
    if not value:
        raise Wrong(f"{where}: is empty")
    text(value, where, bounds.PEOPLE_TEXT_BYTES_MAX)
    return value


def email(value: str | None, where: str) -> str | None:
    """An e-mail address, for people to read: nobody is known by it, so it is kept as it is written."""
    text(value, where, bounds.PEOPLE_TEXT_BYTES_MAX)
    if value is not None:
        before, sign, after = value.rpartition("@")
        if not before or not sign or not after or "@" in before or " " in value:
            raise Wrong(f"{where} {value!r}: must be an address such as ada@example.com")
    return value


def plan(name: str | None, policy: Policy, where: str) -> str | None:
    """The name of a plan."""
    if name is not None and name not in policy.plans:
        raise Wrong(f"{where} {name!r}: not in plans.yaml; there are: {', '.join(sorted(policy.plans))}")
    return name


def names(words: Sequence[str] | None, where: str, known: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """Endpoints, models or rights, each once; None is none said."""
    if words is None:
        return None
    if len(words) > bounds.KEY_NAMES_MAX:
        raise Wrong(f"{len(words)} times {where}: at most {bounds.KEY_NAMES_MAX}")
    for word in words:
        if known is not None and word not in known:
            raise Wrong(f"{where} {word!r}: must be one of {', '.join(known)}")
        if not word or len(word.encode("utf-8", "surrogatepass")) > bounds.MODEL_BYTES_MAX:
            raise Wrong(f"{where} {word[:100]!r}: must have 1 to {bounds.MODEL_BYTES_MAX} bytes")
        if not (word.isascii() and word.isprintable()) or " " in word:
            raise Wrong(f"{where} {word!a}: must be of ASCII letters, digits and signs, without a space")
    return tuple(dict.fromkeys(words))


def networks(words: Sequence[str] | None, where: str) -> tuple[str, ...] | None:
    """CIDR blocks, in their one spelling."""
    if words is None:
        return None
    if len(words) > bounds.KEY_NETWORKS_MAX:
        raise Wrong(f"{len(words)} times {where}: at most {bounds.KEY_NETWORKS_MAX}")
    found = []
    for word in words:
        try:
            if "%" in word:
                raise ValueError("a scope is a word of one machine")
            found.append(str(ip_network(word)))
        except ValueError as error:
            raise Wrong(f"{where} {word!r}: must be an address or a block such as 10.0.0.0/8 ({error})") from None
    return tuple(found)


def amount(value: int | None, where: str) -> int | None:
    """A limit."""
    if value is not None and not 1 <= value <= bounds.LIMIT_MAX:
        raise Wrong(f"{where} {value}: must be 1 to {bounds.LIMIT_MAX}")
    return value


def tags(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Names and values that stand on every usage row."""
    if len(pairs) > bounds.TAGS_MAX:
        raise Wrong(f"{len(pairs)} tags: a key has at most {bounds.TAGS_MAX}")
    size = sum(len(word.encode("utf-8", "surrogatepass")) for pair in pairs for word in pair)
    if size > bounds.TAGS_BYTES_MAX:
        raise Wrong(f"the tags have {size} bytes together: at most {bounds.TAGS_BYTES_MAX}")
    for pair in pairs:
        for word in pair:
            _shown(word, f"tag {pair[0]!a}")
    return tuple(pairs)


def budget(values: Mapping[str, Any], give_period: str, give_amount: str) -> None:
    """A budget and its period go together. The two texts say in the caller's words what to give."""
    amounts = values["budget_nanos"] is not None or values["budget_tokens"] is not None
    if amounts != (values["budget_period"] is not None):
        raise Wrong(
            f"a budget and its period go together: give {give_period} {', '.join(PERIODS)}"
            if amounts
            else f"{give_period}: of what budget? give {give_amount}"
        )
