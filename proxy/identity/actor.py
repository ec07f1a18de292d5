"""Who is at work, and from where: what every writer is told and the audit log keeps."""

from __future__ import annotations

import os
import pwd

from msgspec import Struct

from proxy.identity.roles import Actor

CLI = "cli"


class By(Struct, frozen=True):
    """An actor and where it acts from: an address, or `cli`."""

    actor: Actor
    origin: str


def operator() -> By:
    """Whoever runs a command on the host. The files of the data directory are this one's credential."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user often has a number and no name
        name = "uid"
    return By(Actor("operator", f"{name}:{uid}", "platform_admin", None), CLI)
