"""`weir control` as a process: it serves alone, refuses to start where it cannot work, and its changes are felt."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.control.admin import configured
from tests.world.gateway import ROOT, Gateway, free_port, wait_for


def control(weir: Gateway) -> subprocess.Popen[str]:
    """Starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "proxy", "control", "--config", str(weir.config)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(port: int, method: str, path: str, token: str | None = None, body: Any = None) -> Any:
    """One request that must succeed."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/admin/v1{path}", method=method)
    request.add_header("content-type", "application/json")
    if token is not None:
        request.add_header("authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, None if body is None else json.dumps(body).encode(), timeout=120) as answer:
        return json.load(answer)


@pytest.mark.parametrize("why", ["no schema", "taken", "away", "bad policy"])
def test_it_refuses_to_start(tmp_path: Path, sqlite_url: str, why: str) -> None:
    """Where it cannot work it ends with 1 and one reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        database, port = sqlite_url, free_port()
        if why == "taken":
            port = taken.getsockname()[1]
        elif why in ("no schema", "away"):
            path = tmp_path / "empty.db"
            database = f"sqlite:///{path}"
            if why == "no schema":
                path.touch()
        weir = configured(tmp_path, database, control={"port": port})
        if why == "bad policy":
            weir.write("tenants/globex.yaml", {"name": "globex", "plan": "no such"})
        process = control(weir)
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 1
        reasons = {"no schema": "no Weir schema", "taken": "is in use", "away": "", "bad policy": "no such"}
        assert reasons[why] in errors
        assert "Traceback" not in errors
        assert len(errors.splitlines()) <= 2, errors


def test_it_starts_before_its_database(tmp_path: Path) -> None:
    """While the database is not there every request is told to come again, and the log says what is waited for."""
    port = free_port()
    weir = configured(tmp_path, f"postgresql://weir@127.0.0.1:{free_port()}/weir", control={"port": port})
    process = control(weir)
    try:

        def answered() -> tuple[int, bytes] | None:
            assert process.poll() is None
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/admin/v1/me", headers={"authorization": "Bearer weir_session_x"})
                answer = connection.getresponse()
                return answer.status, answer.read()
            except ConnectionError:
                return None
            finally:
                connection.close()

        status, body = wait_for("an answer", answered)
        assert (status, json.loads(body)["error"]["code"]) == (503, "store_unavailable")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_over_tls(tmp_path: Path, sqlite_url: str) -> None:
    """With a certificate it speaks https, and nothing else."""
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += [
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run(["openssl", *made], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    files = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    port = free_port()
    weir = configured(tmp_path, sqlite_url, control={"port": port, "tls": files})
    trusting = ssl.create_default_context(cafile=files["certificate"])
    process = control(weir)

    def answered() -> bool:
        if process.poll() is not None:
            return True
        try:
            with urllib.request.urlopen(
                f"https://127.0.0.1:{port}/admin/v1/openapi.json", timeout=120, context=trusting
            ) as answer:
                return bool(json.load(answer)["openapi"] == "3.1.0")
        except ConnectionError:
            return False
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionError):
                return False
            raise

    try:
        assert wait_for("the admin API by https", answered)
        assert process.poll() is None
        assert weir.get("/admin/v1/openapi.json", port)[0] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()


def test_from_nothing_to_a_revoked_key(tmp_path: Path) -> None:
    """Beside a whole Weir: the bootstrap's token becomes a session, by which a key is made, used, ended, refused."""
    port = free_port()
    with Gateway(tmp_path, "http://127.0.0.1:9/v1", settings={"control": {"port": port}}) as weir:
        process = control(weir)
        try:
            wait_for("the admin API", lambda: process.poll() is not None or weir.get("/admin/v1/me", port)[0] == 401)
            token = json.loads(weir.weir("admin", "bootstrap", "--json").stdout)["token"]
            session = ask(port, "POST", "/invites/redeem", None, {"token": token, "name": "first"})["token"]
            key = ask(port, "POST", "/keys", session, {"tenant": "acme"})
            policy = ask(port, "GET", "/policy", session)
            assert (policy["origin"], policy["generation"] > 0) == ("snapshot", True)

            def status() -> int:
                request = urllib.request.Request(
                    f"{weir.url}/models", headers={"authorization": f"Bearer {key['key']}"}
                )
                try:
                    with urllib.request.urlopen(request, timeout=120) as answer:
                        return int(answer.status)
                except urllib.error.HTTPError as error:
                    error.close()
                    return error.code

            assert status() == 200
            ask(port, "POST", f"/keys/{key['key_id']}/revoke", session, {"reason": "test"})
            assert status() == 401  # the very next request
            assert ask(port, "GET", "/audit/verify", session)["whole"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        finally:
            process.kill()
            process.communicate()
