"""A process that changes keys: `python -m tests.audit.writer URL NAME COUNT` inserts, revokes and tries in vain.

It says when it is ready and begins when its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys

from proxy.identity.actor import By
from proxy.identity.roles import Actor, Forbidden
from proxy.store.keys import KeyRow
from proxy.store.store import Store


def by(name: str, tenant: str = "acme") -> By:
    """A tenant's admin."""
    return By(Actor("user", name, "tenant_admin", tenant), "192.0.2.7")


def row(name: str, number: int, tenant: str = "acme") -> KeyRow:
    """A key of its own."""
    digest = f"{name}-{number}".encode().ljust(32, b".")
    return KeyRow(f"key_{name}_{number}", digest, tenant, name, None, (), None, None, "abcd", number)


async def work(url: str, name: str, count: int) -> None:
    """Per number: one key made, each second one revoked, each third one asked for in another tenant in vain."""
    store = Store.open(url)
    try:
        for number in range(count):
            made = row(name, number)
            await store.insert_key(made, by(name))
            if number % 2:
                await store.revoke_key(made.key_id, number, by(name))
            if number % 3 == 0:
                try:
                    await store.insert_key(row(name, number, "globex"), by(name))
                except Forbidden:
                    continue
                raise SystemExit("a key of another tenant was made")
    finally:
        await store.close()


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.read()
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))
