"""`weir run`, `weir proxy`, `weir restart` with everything real: workers, keeper, database, the demo as upstream."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from proxy import locks
from proxy.cli import PARTS, VERBS
from proxy.policy.compile import compile_policy
from proxy.policy.process import Metrics
from proxy.settings import load
from proxy.supervisor import Helper
from proxy.verbs.run import model_of, tenant_of, welcome
from tests.processes.conftest import ROOT, alive, descendants, eventually
from tests.world.gateway import Gateway, free_port, wait_for
from tests.world.process import UpstreamProcess

QUESTION = {"model": "small", "messages": [{"role": "user", "content": "Say hello."}]}


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The demo upstream on a free port: its base URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "proxy", "demo", "--port", str(port)], cwd=ROOT)
    try:

        def answers() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/v1/models")
                return connection.getresponse().status < 500
            except OSError:
                return False
            finally:
                connection.close()

        wait_for("the demo answers", answers)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def weir(tmp_path: Path, demo: str) -> Iterator[Gateway]:
    """A configuration with two workers, nothing running yet; whatever runs at the end is killed by its number."""
    made = Gateway(
        tmp_path,
        demo,
        workers=2,
        settings={
            "models": {"small": {"upstream": "mock", "unpriced": True}, "*": {"upstream": "mock", "unpriced": True}},
            "log": {"requests": "summary"},
        },
    )
    try:
        yield made
    finally:
        made.kill_all()


class Running:
    """`weir run` as a process, with what it prints."""

    def __init__(self, weir: Gateway) -> None:
        self.weir = weir
        self.output = weir.output
        self.before = len(self.text()) if self.output.exists() else 0  # what earlier ones printed
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "run", "--config", str(weir.config)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def curl(self) -> str:
        """Its curl line, once it is printed whole; lines of requests may follow at any time."""

        def look() -> str:
            assert self.process.poll() is None, self.text()
            found = re.search(r"^(curl .*)\n", self.text()[self.before :], re.MULTILINE)
            return found[1] if found else ""

        return str(eventually("a curl line is printed", look))

    def text(self) -> str:
        return self.output.read_text()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0, self.text()


def _paste(line: str) -> str:
    """What a shell does with the line."""
    done = subprocess.run([*shlex.split(line), "-sS", "-m", "50"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_prints_a_line_that_works(weir: Gateway) -> None:
    """The curl line streams an answer, its summary follows, a second run is refused, a later one replaces the key."""
    first = Running(weir)
    line = first.curl()
    assert "[DONE]" in _paste(line)
    eventually(
        "a summary of the request", lambda: re.search(r"acme +small +200 +2\+\d+ tokens +unpriced", first.text())
    )
    assert weir.get("/readyz")[0] == 200

    second = Running(weir)
    assert second.process.wait(120) == 1
    assert f"Another supervisor (process {first.process.pid})" in first.text()
    assert "[DONE]" in _paste(line)  # the refused one has not taken the first one's key away

    parts = descendants(first.process.pid)
    assert len(parts) == 4  # keeper, two workers, the admin API
    first.stop()
    assert not any(alive(pid) for pid in parts)
    assert len(weir.rows()) == 2

    third = Running(weir)
    assert third.curl() != line
    assert "invalid_api_key" in _paste(line)
    assert "[DONE]" in _paste(third.curl())
    third.stop()


def test_proxy_refuses_a_database_without_schema(weir: Gateway) -> None:
    """A part that migrates nothing says what to run instead, and starts nothing."""
    done = weir.weir("proxy", check=False)
    assert done.returncode == 1
    assert "Run `weir run`" in done.stderr
    assert not weir.processes()


def test_a_bad_configuration_starts_nothing(weir: Gateway) -> None:
    """Every problem is printed, and no database, key or process is made."""
    weir.write("plans.yaml", {"plans": {"all": {"limits": {"tokens_per_minut": 1}}}})
    for verb in ("run", "proxy", "reload"):
        done = weir.weir(verb, check=False)
        assert done.returncode == 1
        assert "did you mean tokens_per_minute?" in done.stderr
        assert "nothing was changed" in done.stderr
    assert not (weir.data / "weir.db").exists()


def test_a_second_run_hears_of_the_first_before_its_ports(weir: Gateway) -> None:
    """Two on one data directory have their ports in common: the one that is refused is told what is the matter."""
    weir.data.mkdir(exist_ok=True)
    lock = locks.hold(weir.data / "supervisor.lock")
    document = json.loads((weir.config / "weir.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        weir.write("weir.yaml", document | {"control": {"port": taken.getsockname()[1]}})
        try:
            done = weir.weir("run", check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert f"Another supervisor (process {os.getpid()}) runs on {weir.data}." in done.stderr
        finally:
            os.close(lock)
        done = weir.weir("run", check=False)
        assert f"control: listen: 127.0.0.1:{taken.getsockname()[1]} is in use" in done.stderr


def test_a_data_directory_that_is_none(weir: Gateway) -> None:
    """What stands in the way is named, not the call that failed."""
    document = json.loads((weir.config / "weir.yaml").read_text())
    weir.write("weir.yaml", document | {"data_dir": str(weir.config / "plans.yaml")})
    for verb in ("run", "proxy"):
        done = weir.weir(verb, check=False)
        assert done.returncode == 1
        assert f"data_dir: {weir.config}/plans.yaml is not a directory; name another place" in done.stderr


def test_help_lists_what_is_for_people() -> None:
    """Each verb has its line; the parts that the supervisor starts have none."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    for verb, words in VERBS.items():
        assert re.search(rf"^ +{verb} +{re.escape(words)}$", done.stdout, re.MULTILINE), verb
    assert "SUPPRESS" not in done.stdout
    assert not [verb for verb in PARTS if re.search(rf"^ +{verb} ", done.stdout, re.MULTILINE)]


def test_what_the_system_refuses_is_one_line(weir: Gateway) -> None:
    """A data directory that cannot be made ends a verb with a sentence, not with a traceback."""
    document = json.loads((weir.config / "weir.yaml").read_text())
    weir.write("weir.yaml", document | {"data_dir": str(weir.config / "plans.yaml" / "below")})
    for words in (("keys", "create", "--tenant", "acme"), ("audit", "key"), ("usage",)):
        done = weir.weir(*words, check=False)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert re.fullmatch(rf"weir {words[0]}: .*plans.yaml/below.*\n", done.stderr), done.stderr


# SIGINT is ignored by what a shell runs in its background, these tests perhaps, and that is inherited.
EARLY = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from proxy import cli
load = cli.importlib.import_module
def interrupted(name):
    for number in sys.argv[1:]:
        os.kill(os.getpid(), int(number))
    return load(name)
cli.importlib.import_module = interrupted
raise SystemExit(cli.main(["run", "--config", "nowhere"]))
"""


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [((signal.SIGUSR2, signal.SIGHUP), 1, "nowhere/weir.yaml:1: no such file"), ((signal.SIGINT,), 130, "")],
)
def test_signals_while_it_is_only_just_starting(numbers: tuple[signal.Signals, ...], code: int, said: str) -> None:
    """A wish to reload or restart does not kill `weir run`, and an interrupt ends it without a traceback."""
    words = [str(int(number)) for number in numbers]
    command = [sys.executable, "-c", EARLY, *words]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_restart_without_a_supervisor(weir: Gateway) -> None:
    """The command says that nothing runs and what to start."""
    done = weir.weir("restart", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no supervisor runs" in done.stderr


class Client(threading.Thread):
    """Streams one answer after the other, each on a new connection, until told to stop."""

    def __init__(self, weir: Gateway, stop: threading.Event, *, stream: bool) -> None:
        super().__init__()
        self.weir = weir
        self.stop_event = stop
        self.stream = stream
        self.good = 0
        self.bad: list[str] = []

    def run(self) -> None:
        while not self.stop_event.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.weir.port, timeout=120)
            try:
                body = json.dumps({**QUESTION, "stream": self.stream, "max_tokens": 40 if self.stream else 3})
                headers = {"Authorization": f"Bearer {self.weir.key}", "Content-Type": "application/json"}
                connection.request("POST", "/v1/chat/completions", body, headers)
                answer = connection.getresponse()
                text = answer.read().decode()
                whole = "[DONE]" in text if self.stream else '"usage"' in text
                if answer.status == 200 and whole:
                    self.good += 1
                else:
                    self.bad.append(f"{answer.status} {text[-200:]}")
            except (OSError, http.client.HTTPException) as error:
                self.bad.append(repr(error))
            finally:
                connection.close()


def _requests(weir: Gateway) -> float:
    page = weir.get("/metrics")[1].decode()
    return sum(float(number) for number in re.findall(r"^weir_requests_total{.*} (\S+)$", page, re.MULTILINE))


def test_a_rolling_restart_of_a_real_weir(weir: Gateway) -> None:
    """`weir restart` under load: no request fails, no stream is cut, every call is a row, the counters never fall."""
    with weir:
        before = set(weir.processes("worker", "keeper"))
        stop = threading.Event()
        clients = [Client(weir, stop, stream=number % 2 == 0) for number in range(6)]
        for client in clients:
            client.start()
        totals = []
        try:
            eventually("every client has had an answer", lambda: all(client.good for client in clients))
            totals.append(_requests(weir))
            assert weir.weir("restart").stdout == "restarted\n"
            totals.append(_requests(weir))
        finally:
            stop.set()
            for client in clients:
                client.join(120)
        assert [bad for client in clients for bad in client.bad] == []
        assert all(client.good for client in clients)
        assert 0 < totals[0] < totals[1]
        assert not before & set(weir.processes("worker", "keeper"))
        good = sum(client.good for client in clients)
        eventually("every call is a row", lambda: len(weir.rows()) == good)


def test_a_stream_outlives_its_supervisor(weir: Gateway) -> None:
    """SIGKILL to the supervisor in mid-stream: the stream ends whole, the old parts end, a new supervisor serves."""
    with weir:
        old = set(weir.processes())
        body = json.dumps({**QUESTION, "stream": True})
        headers = {"Authorization": f"Bearer {weir.key}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", weir.port, timeout=120)
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            start = answer.read(50)
            weir.parts["proxy"].kill()
            weir.parts["proxy"].wait()
            weir.start()
            assert b"[DONE]" in start + answer.read()
        finally:
            connection.close()
        eventually("the old parts are gone", lambda: not old & set(weir.processes()))
        assert weir.ready()
        eventually("it is a row", lambda: [row["termination"] for row in weir.rows()] == ["complete"])


def test_a_second_sigterm_ends_a_stream(tmp_path: Path) -> None:
    """The first SIGTERM lets a stream run, the second ends it: the client sees the cut and the row says so."""
    with UpstreamProcess(tmp_path / "ledger.jsonl") as upstream, Gateway(tmp_path, upstream.url, workers=2) as weir:
        endless = {"role": "user", "content": '@{"endless": true, "delay_ms": 20} go on'}
        body = json.dumps({"model": "small", "messages": [endless], "stream": True})
        headers = {"Authorization": f"Bearer {weir.key}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", weir.port, timeout=120)
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read(50)
            supervisor = weir.parts["proxy"]
            supervisor.send_signal(signal.SIGTERM)
            eventually("draining", lambda: json.loads(weir.get("/readyz")[1] or b"{}").get("status") == "unavailable")
            supervisor.send_signal(signal.SIGTERM)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                answer.read()
            assert supervisor.wait(120) == 0
        finally:
            connection.close()
        assert len(weir.rows()) == 1
        assert weir.rows()[0]["termination"] != "complete"


def test_what_run_shows(weir: Gateway) -> None:
    """The demo's key and model are preferred only where the demo answers; a suspended tenant gets no key."""
    policy = compile_policy(weir.config)
    settings = load(weir.config)
    assert tenant_of(policy) == "acme"
    assert model_of(policy, "acme", demo=False) == "small"
    text = welcome(settings, policy, (), "wk_run_x", 1234, 5678)
    assert f"http://127.0.0.1:{weir.metrics_port}/metrics" in text
    assert "http://127.0.0.1:5678/admin/v1" in text
    everywhere = msgspec.structs.replace(
        settings, listen=msgspec.structs.replace(settings.listen, host="::"), metrics=Metrics("0.0.0.0", 9091)
    )
    shown = welcome(everywhere, policy, (), "wk_run_x", 1234, 5678)
    assert "Weir serves http://[::1]:1234/v1" in shown
    assert "http://127.0.0.1:9091/metrics" in shown
    assert "curl -N http://127.0.0.1:1234/v1/chat/completions -H 'Authorization: Bearer wk_run_x'" in text
    weir.write(
        "weir.yaml",
        {
            **json.loads((weir.config / "weir.yaml").read_text()),
            "models": {"demo": {"upstream": "mock", "unpriced": True}, "small": {"upstream": "mock", "unpriced": True}},
        },
    )
    both = compile_policy(weir.config)
    assert model_of(both, "acme", demo=True) == "demo"
    assert model_of(both, "acme", demo=False) == "small"
    weir.write(
        "weir.yaml",
        {
            **json.loads((weir.config / "weir.yaml").read_text()),
            "models": {"*": {"upstream": "mock", "unpriced": True}},
        },
    )
    every = compile_policy(weir.config)
    assert model_of(every, "acme", demo=True) == "demo"
    assert model_of(every, "acme", demo=False) is None
    assert "none by name" in welcome(settings, every, (), "wk_run_x", 1234, 5678)
    weir.write("plans.yaml", {"plans": {"all": {"models": ["listed"]}}})
    listed = compile_policy(weir.config)  # a name that only the catch-all serves
    assert model_of(listed, "acme", demo=False) == "listed"
    assert model_of(listed, "acme", demo=True) == "listed"
    weir.write("plans.yaml", {"plans": {"all": {}}})
    assert "set WEIR_UPSTREAM_URL" in welcome(settings, both, (Helper("demo", ("x",)),), "wk_run_x", 1, 2)
    weir.write("tenants/acme.yaml", {"name": "acme", "plan": "all", "status": "suspended"})
    assert tenant_of(compile_policy(weir.config)) is None
    assert "curl" not in welcome(settings, compile_policy(weir.config), (), "", 1, 2)
