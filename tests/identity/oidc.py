"""A real identity provider for tests: npm's `oidc-provider` under Node, on the loopback, and a user who signs in there.

Its packages are installed once, from the lock file in `provider/`, into a directory outside the repository:
WEIR_TEST_NODE_DIR, or one of the user's own beside other temporary files. Where Node, npm or the registry is missing
the tests that need it skip, and say so.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
import pytest

HERE = Path(__file__).parent / "provider"
FILES = ("package.json", "package-lock.json", "provider.mjs")
INSTALL_SECONDS_MAX = 90
ANSWER_SECONDS_MAX = 60
STEPS_MAX = 12  # redirects and forms of one sign-in; there are eight
CALLBACK = "http://127.0.0.1/callback"


def missing(reason: str) -> Any:
    """Ends the test as skipped, in a line that cannot be overlooked."""
    pytest.skip(f"*** NO REAL IDENTITY PROVIDER WAS TESTED: {reason} ***")


def installed() -> Path:
    """The directory with the provider and its packages; skips the test where there can be none."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            missing(f"{program} is not installed")
    root = Path(os.environ.get("WEIR_TEST_NODE_DIR") or Path(tempfile.gettempdir()) / f"weir-tests-node-{os.getuid()}")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        missing(f"{root} belongs to another user")
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in FILES)).hexdigest()[:16]
    ready = root / digest
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            partial = Path(tempfile.mkdtemp(dir=root))
            for name in FILES:
                shutil.copy(HERE / name, partial)
            install(partial)
            partial.rename(ready)
    return ready


def install(directory: Path) -> None:
    """Installs what the lock file names, to the digest; no package runs anything of its own."""
    words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        shutil.rmtree(directory)
        missing(f"npm did not install it within {INSTALL_SECONDS_MAX} s")
    if done.returncode:
        shutil.rmtree(directory)
        missing(f"npm cannot install it: {done.stderr.strip()[-300:]}")


class Provider:
    """`with Provider() as provider`: running, with the key k1. Its input is its lifeline: it ends with the test."""

    def __init__(self) -> None:
        self.directory = installed()
        self.issuer = ""
        self.process: subprocess.Popen[bytes]
        self._read = b""

    def __enter__(self) -> Self:
        with (self.directory / "provider.log").open("a") as errors:
            self.process = subprocess.Popen(
                ["node", "provider.mjs"],
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        try:
            self.issuer = self._said()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it. Nothing answers at its address from then on."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def publish(self, *names: str) -> None:
        """Publishes exactly these keys; the first of them signs. In force when this returns."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"keys": names}).encode() + b"\n")
        self.process.stdin.flush()
        assert self._said() == "done"

    def _said(self) -> str:
        """The next line that is meant for us: the provider's own warnings come the same way."""
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while True:
            line, newline, rest = self._read.partition(b"\n")
            if newline:
                self._read = rest
                if line.startswith(b"> "):
                    return line[2:].decode()
                continue
            readable, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(out, 65536) if readable else b""
            log = (self.directory / "provider.log").read_text()[-2000:]
            assert more, f"the provider says nothing; its log ends with:\n{log}"
            self._read += more

    def sign_in(self, user: str) -> dict[str, str]:
        """What the token endpoint gives this user, by the authorization code flow with PKCE: access and ID token."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "client_id": "app",
            "response_type": "code",
            "redirect_uri": CALLBACK,
            "scope": "openid",
            "state": "here",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        with httpx2.Client(trust_env=False, timeout=ANSWER_SECONDS_MAX) as browser:
            answer = browser.get(f"{self.issuer}/auth", params=asked)
            for _ in range(STEPS_MAX):
                location = answer.headers.get("location", "")
                if location.startswith(CALLBACK):
                    break
                if location:
                    answer = browser.get(urljoin(str(answer.url), location))
                else:
                    answer = self._fill_in(browser, answer, user)
            returned = parse_qs(urlsplit(answer.headers["location"]).query)
            assert (returned["state"], returned["iss"]) == (["here"], [self.issuer])  # RFC 9207
            answer = browser.post(
                f"{self.issuer}/token",
                data={
                    "client_id": "app",
                    "grant_type": "authorization_code",
                    "code": returned["code"][0],
                    "redirect_uri": CALLBACK,
                    "code_verifier": verifier,
                },
            )
            assert answer.status_code == 200, answer.text
            said: dict[str, str] = answer.json()
            return said

    def _fill_in(self, browser: httpx2.Client, page: httpx2.Response, user: str) -> httpx2.Response:
        """Sends the form of a page: who one is, or that one agrees."""
        assert page.status_code == 200, page.text
        action = re.search(r'<form[^>]*action="([^"]+)"', page.text)
        prompt = re.search(r'name="prompt" value="(\w+)"', page.text)
        assert action is not None, page.text
        assert prompt is not None, page.text
        return browser.post(
            urljoin(str(page.url), action[1]), data={"prompt": prompt[1], "login": user, "password": "any"}
        )
