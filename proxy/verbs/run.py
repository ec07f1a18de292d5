"""`weir run`: everything on this machine. Migrates the database, makes a key for this run, and shows how to use it."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
from pathlib import Path

from proxy import settings
from proxy.call import Principal
from proxy.identity import pepper
from proxy.parts import refuse_second
from proxy.places import CannotListen, bind, called
from proxy.policy.effective import effective, visible_models
from proxy.policy.secrets import SecretMissing
from proxy.policy.snapshot import Policy
from proxy.settings import Settings, masked
from proxy.store.store import BadData, SchemaMismatch, StoreUnavailable, migrate
from proxy.supervisor import Helper, Refused, Supervisor
from proxy.verbs import config_argument
from proxy.verbs.control import listener_of
from proxy.verbs.keys import RUN_KEY_HOURS, replace_run_key
from proxy.verbs.proxy import judged, log_of, part, plan

_DEMO_PORT = 8081
_DEMO_URL = f"http://127.0.0.1:{_DEMO_PORT}/v1"
_DEMO = "demo"  # the example configuration's name of the tenant and of the model to try the way with
_CHAT = "chat.completions"
_QUESTION = "Say hello."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `weir run`."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs until told to end: 0 after a drain, 1 with a sentence when it cannot start."""
    found = judged(args.config, "run")
    if found is None:
        return 1
    process, policy = found
    try:
        refuse_second(process.data_dir)
        control = listener_of(process)
        handed = settings.hand_on(process)
        helpers = _helpers(args.config, process, policy, control, handed)
        secret = ""

        def show(port: int) -> None:
            admin = control.getsockname()[1]
            print(welcome(process, policy, helpers, secret, port, admin), flush=True)

        # First the lock, then the key: a second `weir run` must not revoke the first one's.
        supervisor = Supervisor(plan(args.config, process, handed, helpers), log_of(process), show)
        if helpers and helpers[0].first:
            _check_demo_port()
        pepper.of(process.data_dir, process.pepper)
        asyncio.run(migrate(process.database))
        tenant = tenant_of(policy)
        secret = replace_run_key(process, tenant) if tenant else ""
        return asyncio.run(supervisor.run())
    except (
        Refused,
        CannotListen,
        SchemaMismatch,
        StoreUnavailable,
        BadData,
        SecretMissing,
        ValueError,
        OSError,
    ) as error:
        print(f"weir run: {error}", file=sys.stderr)
        return 1


def _helpers(
    config: Path, process: Settings, policy: Policy, control: socket.socket, handed: int
) -> tuple[Helper, ...]:
    """The demo upstream where the policy points at it, the flusher where there is a Redis, and the admin API."""
    helpers = []
    if any(upstream.url == _DEMO_URL for upstream in policy.upstreams.values()):
        command = (sys.executable, "-m", "proxy", "demo", "--port", str(_DEMO_PORT))
        helpers.append(Helper("demo", command, first=True, lifeline=False))
    if process.redis is not None:
        helpers.append(Helper("flusher", part("flush", config, handed), fds=(handed,)))
    # It inherits the bound socket: a port that is taken is found out here, before anything is started.
    serving = (*part("control", config, handed), "--listen-fd", str(control.fileno()))
    helpers.append(Helper("control", serving, fds=(control.fileno(), handed)))
    return tuple(helpers)


def _check_demo_port() -> None:
    """Else every call would go to a stranger. Raises CannotListen."""
    try:
        for one in bind("127.0.0.1", _DEMO_PORT, 1):
            one.close()
    except CannotListen as error:
        raise CannotListen(f"the built-in demo upstream: {error}, or set WEIR_UPSTREAM_URL") from error


def tenant_of(policy: Policy) -> str | None:
    """Whose key to make: the tenant `demo`, else the first active one; None when there is none."""
    active = [name for name, tenant in policy.tenants.items() if tenant.status == "active"]
    return _DEMO if _DEMO in active else min(active, default=None)


def model_of(policy: Policy, tenant: str, *, demo: bool) -> str | None:
    """A model that this tenant can chat with, for the curl line; the demo one only where the demo answers."""
    principal = Principal(tenant, "")

    def chats(name: str) -> bool:
        return effective(policy, principal, name, _CHAT).allowed

    if demo and chats(_DEMO):
        return _DEMO
    return next((name for name in visible_models(policy, principal) if name != _DEMO and chats(name)), None)


def _called(host: str) -> str:
    """As a URL has it."""
    address = called(host)
    return f"[{address}]" if ":" in address else address


def welcome(process: Settings, policy: Policy, helpers: tuple[Helper, ...], secret: str, port: int, admin: int) -> str:
    """What is printed once everything serves: addresses, the key, and a curl line that works when it is pasted."""
    scheme = "https" if process.listen.tls else "http"
    base = f"{scheme}://{_called(process.listen.host)}:{port}/v1"
    demo = any(helper.name == "demo" for helper in helpers)
    upstreams = ", ".join(sorted({upstream.url for upstream in policy.upstreams.values()}))
    metrics = process.metrics
    lines = [
        f"\nWeir serves {base}",
        f"  upstream  {upstreams}{' (the built-in demo: set WEIR_UPSTREAM_URL for a real one)' if demo else ''}",
        f"  metrics   http://{_called(metrics.host)}:{metrics.port}/metrics" if metrics.port else "",
        f"  admin     {'https' if process.control.tls else 'http'}://{_called(process.control.host)}:{admin}/admin/v1",
        f"  database  {masked(process.database)}",
    ]
    tenant = tenant_of(policy)
    if tenant is None:
        return "\n".join([*lines, "  key       none: no tenant is active", ""])
    lines.append(f"  key       {secret}  (tenant {tenant}, {RUN_KEY_HOURS} h)")
    model = model_of(policy, tenant, demo=demo)
    if model is None:
        lines.append("  models    none by name: call one that the upstream knows")
    else:
        body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": _QUESTION}]})
        insecure = " -k" if scheme == "https" else ""
        lines += [
            f"\ncurl -N{insecure} {base}/chat/completions -H 'Authorization: Bearer {secret}' "
            f"-H 'Content-Type: application/json' -d '{body}'",
        ]
    return "\n".join([*filter(None, lines), ""])
