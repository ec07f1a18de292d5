"""The database of Weir: keys, the flush, reports. `Store.open(url)` and its methods are all that others need."""

from __future__ import annotations

from proxy.store.database import BadData, SchemaMismatch, StoreUnavailable
from proxy.store.keys import KeyRow, Keys
from proxy.store.migrate import migrate
from proxy.store.persist import Persisted, Persisting

__all__ = ["BadData", "KeyRow", "Persisted", "SchemaMismatch", "Store", "StoreUnavailable", "migrate"]


class Store(Keys, Persisting):
    """Everything that is asked of the database, on one engine."""
