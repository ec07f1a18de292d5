"""The database of Weir: keys, people, the audit log, the flush, reports.

`Store.open(url)` and its methods are all that others need.
"""

from __future__ import annotations

from proxy.store.audit import Absent, Attempt, Head, KeysMark, NotDone, Stale
from proxy.store.database import BadData, SchemaMismatch, StoreUnavailable
from proxy.store.directory import Directory
from proxy.store.invites import Invite, Invites
from proxy.store.keys import KeyRow, Keys
from proxy.store.migrate import migrate
from proxy.store.once import ByOnce, Once, OtherRequest, Repeated
from proxy.store.people import Membership, Session, User
from proxy.store.persist import Persisted, Persisting
from proxy.store.revisions import PolicyRevision, Published, Revisions
from proxy.store.usage import Filters, Report, Reports
from proxy.store.verify import Finding, Verified, Verifying

__all__ = [
    "Absent",
    "Attempt",
    "BadData",
    "ByOnce",
    "Filters",
    "Finding",
    "Head",
    "Invite",
    "KeyRow",
    "KeysMark",
    "Membership",
    "NotDone",
    "Once",
    "OtherRequest",
    "Persisted",
    "PolicyRevision",
    "Published",
    "Repeated",
    "Report",
    "SchemaMismatch",
    "Session",
    "Stale",
    "Store",
    "StoreUnavailable",
    "User",
    "Verified",
    "migrate",
]


class Store(Keys, Invites, Directory, Persisting, Reports, Revisions, Verifying):
    """Everything that is asked of the database, on one engine."""
