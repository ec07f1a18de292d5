"""The database of Weir: keys, the flush, reports. `Store.open(url)` and its methods are all that others need."""

from __future__ import annotations

from proxy.store.database import BadData, SchemaMismatch, StoreUnavailable
from proxy.store.keys import KeyRow, Keys, KeysMark
from proxy.store.migrate import migrate
from proxy.store.persist import Persisted, Persisting
from proxy.store.usage import Filters, Report, Reports
from proxy.store.verify import Finding, Verified, Verifying

__all__ = [
    "BadData",
    "Filters",
    "Finding",
    "KeyRow",
    "KeysMark",
    "Persisted",
    "Report",
    "SchemaMismatch",
    "Store",
    "StoreUnavailable",
    "Verified",
    "migrate",
]


class Store(Keys, Persisting, Reports, Verifying):
    """Everything that is asked of the database, on one engine."""
