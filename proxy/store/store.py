"""The database of Weir: keys, people, the audit log, the flush, reports.

`Store.open(url)` and its methods are all that others need.
"""

from __future__ import annotations

from proxy.store.audit import Attempt, Head, KeysMark, NotDone
from proxy.store.database import BadData, SchemaMismatch, StoreUnavailable
from proxy.store.invites import Invite, Invites
from proxy.store.keys import KeyRow, Keys
from proxy.store.migrate import migrate
from proxy.store.people import Membership, Session, User
from proxy.store.persist import Persisted, Persisting
from proxy.store.usage import Filters, Report, Reports
from proxy.store.verify import Finding, Verified, Verifying

__all__ = [
    "Attempt",
    "BadData",
    "Filters",
    "Finding",
    "Head",
    "Invite",
    "KeyRow",
    "KeysMark",
    "Membership",
    "NotDone",
    "Persisted",
    "Report",
    "SchemaMismatch",
    "Session",
    "Store",
    "StoreUnavailable",
    "User",
    "Verified",
    "migrate",
]


class Store(Keys, Invites, Persisting, Reports, Verifying):
    """Everything that is asked of the database, on one engine."""
