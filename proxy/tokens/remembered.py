"""What is remembered for each tenant by itself, a bounded number of things. Pure, and not safe between threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from proxy.bounds import TENANTS_REMEMBERED_MAX

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """A tenant's own things make room for its new ones: what one tenant does, no other can tell.

    Only where more than `tenants_max` tenants are at work is one of them forgotten, the one that has rested longest.
    """

    def __init__(self, each_max: int, tenants_max: int = TENANTS_REMEMBERED_MAX) -> None:
        self._each_max = each_max
        self._tenants_max = tenants_max
        self._tenants: OrderedDict[str, OrderedDict[Key, Value]] = OrderedDict()

    def __len__(self) -> int:
        """Of all tenants."""
        return sum(map(len, self._tenants.values()))

    def get(self, tenant: str, key: Key) -> Value | None:
        """The tenant's, now its youngest; None where it has none."""
        own = self._tenants.get(tenant)
        if own is None or key not in own:
            return None
        self._tenants.move_to_end(tenant)
        own.move_to_end(key)
        return own[key]

    def put(self, tenant: str, key: Key, value: Value) -> None:
        """Remembers it, in place of what the key had, and of the tenant's oldest if there are too many."""
        own = self._tenants.setdefault(tenant, OrderedDict())
        self._tenants.move_to_end(tenant)
        own[key] = value
        own.move_to_end(key)
        if len(own) > self._each_max:
            own.popitem(last=False)
        if len(self._tenants) > self._tenants_max:
            self._tenants.popitem(last=False)
