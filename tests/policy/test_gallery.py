"""Every bad configuration gives exactly its sentences; every good one compiles and survives the snapshot."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from proxy import settings
from proxy.policy.compile import compile_policy, examine
from proxy.policy.problems import PolicyErrors
from proxy.policy.snapshot import Policy
from tests.policy.gallery import BASE, EXAMPLE, cases, certificate, environment, lay_out, note

CASE_LINES_MAX = 200  # a longer sentence would not be read


@pytest.mark.parametrize("case", cases("bad"), ids=lambda case: case.name)
def test_bad_configurations_give_their_sentences(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should name file, line, path and remedy: all problems, nothing else, in the words of expected.txt."""
    lay_out(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    examined = examine("config", {})
    assert "".join(f"{problem}\n" for problem in examined.problems) == note(case, "expected.txt")
    assert examined.policy is None
    assert all(len(str(problem)) <= CASE_LINES_MAX for problem in examined.problems)
    with pytest.raises(PolicyErrors) as raised:
        compile_policy("config", {})
    assert raised.value.problems == examined.problems
    assert str(raised.value) + "\n" == note(case, "expected.txt")


@pytest.mark.parametrize("case", [BASE, *cases("good")], ids=lambda case: case.name)
def test_good_configurations_compile(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should compile, warn in the words of warnings.txt, and read back from the snapshot as the same policy."""
    lay_out(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    examined = examine("config", environment(case))
    assert not examined.problems
    assert "".join(f"{warning}\n" for warning in examined.warnings) == note(case, "warnings.txt")
    assert examined.policy is not None
    again = Policy.decode(examined.policy.encode())
    assert again == examined.policy
    assert again.encode() == examined.policy.encode()
    assert compile_policy("config", environment(case)).version == examined.policy.version
    settings.load("config", environment(case))


def test_the_gallery_is_large_and_every_kind_of_pass_is_in_it() -> None:
    """Should hold at least 35 bad cases, of each of the three passes."""
    names = [case.name for case in cases("bad")]
    assert len(names) >= 35
    assert {name.partition("-")[0] for name in names} >= {"text", "shape", "meaning", "files"}


def test_problems_of_the_process_part_are_those_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should say the same of weir.yaml whether the process or the policy is read from it."""
    seen = 0
    for case in cases("bad"):
        expected = note(case, "expected.txt").splitlines()
        process = [line for line in expected if line.partition(": ")[2].startswith(("listen", "metrics", "journal"))]
        if not process:
            continue
        lay_out(case, tmp_path / case.name)
        monkeypatch.chdir(tmp_path / case.name)
        with pytest.raises(PolicyErrors) as raised:
            settings.load("config", {})
        assert set(process) <= {str(problem) for problem in raised.value.problems}
        seen += 1
    assert seen >= 4


LISTEN = "listen: {tls: {certificate: tls/%s, key: tls/%s}}\n"
BUNDLE = "upstreams: {main: {url: https://a/v1, ca_bundle: tls/%s}}\nmodels: {m: {upstream: main, unpriced: true}}\n"
NO_CERTIFICATE = "holds no certificate in PEM"
NOT_ITS_KEY = "is not that certificate's private key in PEM, without a password"


@pytest.mark.parametrize(
    ("written", "where", "file", "sentence"),
    [
        (LISTEN % ("broken.pem", "key.pem"), "listen.tls.certificate", "broken.pem", NO_CERTIFICATE),
        (LISTEN % ("key.pem", "key.pem"), "listen.tls.certificate", "key.pem", NO_CERTIFICATE),
        (LISTEN % ("cert.pem", "other.pem"), "listen.tls.key", "other.pem", NOT_ITS_KEY),
        (LISTEN % ("cert.pem", "cert.pem"), "listen.tls.key", "cert.pem", NOT_ITS_KEY),
        (BUNDLE % "broken.pem", "upstreams.main.ca_bundle", "broken.pem", NO_CERTIFICATE),
    ],
)
def test_certificates_are_read(tmp_path: Path, written: str, where: str, file: str, sentence: str) -> None:
    """Should find a file that TLS could not be done with before a worker needs it."""
    config = lay_out(BASE, tmp_path)
    base = "" if "upstreams" in written else (config / "weir.yaml").read_text()
    (config / "weir.yaml").write_text(written + base)
    problems = [str(problem) for problem in examine(config, {}).problems if problem.path == where]
    assert problems == [f"{config}/weir.yaml:1: {where}: {tmp_path}/tls/{file} {sentence}"]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("", "${KEY} is not set in the environment"),
        ("two words", "${KEY} holds a space or a character beyond ASCII"),
        ("clé", "${KEY} holds a space or a character beyond ASCII"),
        ("a\nb", "${KEY} holds a control character or more than one line"),
    ],
)
def test_who_serves_needs_the_secrets(tmp_path: Path, key: str, sentence: str) -> None:
    """Should warn of a credential that cannot be sent, and refuse to serve without it."""
    config = lay_out(BASE, tmp_path)
    text = (config / "weir.yaml").read_text()
    (config / "weir.yaml").write_text(text.replace("  main:\n", "  main:\n    key: ${KEY}\n", 1))
    where = f"{config}/weir.yaml:3: upstreams.main.key: {sentence}"
    reviewed = examine(config, {"KEY": key})
    assert reviewed.policy is not None
    assert [str(warning) for warning in reviewed.warnings] == [
        f"{where}; the processes that use it will refuse to start"
    ]
    serving = examine(config, {"KEY": key}, serving=True)
    assert (serving.policy, [str(problem) for problem in serving.problems]) == (None, [where])


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should say which file is not there, and take an absent price list for an empty one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    lines = [str(problem) for problem in examine("config", {}).problems]
    assert lines == ["config/plans.yaml:1: no such file", "config/weir.yaml:1: no such file"]
    lay_out(BASE, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    Path("config/prices.yaml").unlink()
    lines = [str(problem) for problem in examine("config", {}).problems]
    assert lines == [
        f"config/weir.yaml:{line}: models.{name}: no price; add one to config/prices.yaml, or write unpriced: true"
        for line, name in ((5, "small"), (7, "large"))
    ]


def test_a_directory_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should say what is wrong with the directory itself: it is none, or it is somebody else's."""
    monkeypatch.chdir(tmp_path)
    remedy = "nowhere is no directory; --config names the one with weir.yaml"
    lines = [str(problem) for problem in examine("nowhere", {}).problems]
    assert lines == [f"nowhere/{name}.yaml:1: no such file: {remedy}" for name in ("plans", "weir")]
    config = lay_out(BASE, tmp_path / "other")

    def closed(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    lines = [str(problem) for problem in examine(config, {}).problems]
    assert lines == [f"{path}:1: cannot be read: Permission denied" for path in (config, config / "tenants")]


def test_certificates_with_a_password_are_refused(tmp_path: Path) -> None:
    """Should not let OpenSSL ask for it at a terminal."""
    config = lay_out(BASE, tmp_path)
    key = load_pem_private_key(certificate()["key.pem"], None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "tls" / "key.pem").write_bytes(locked)
    (config / "weir.yaml").write_text(LISTEN % ("cert.pem", "key.pem") + (config / "weir.yaml").read_text())
    sentences = [problem.sentence for problem in examine(config, {}).problems]
    assert sentences == [f"{tmp_path}/tls/key.pem {NOT_ITS_KEY}"]


def test_paths_are_as_the_operator_gave_them(tmp_path: Path) -> None:
    """Should repeat an absolute configuration directory as it was given."""
    config = lay_out(BASE, tmp_path)
    (config / "tenants" / "acme.yaml").write_text("name: acme\nplan: tema\n")
    problems = examine(config, {}).problems
    assert str(problems[0]) == f"{config}/tenants/acme.yaml:2: plan: unknown plan tema; did you mean team?"


def test_the_example_configuration_is_good() -> None:
    """Should compile config/ as it is shipped, without an environment and without a doubt."""
    examined = examine(EXAMPLE, {})
    assert not examined.problems
    assert not examined.warnings
    assert examined.policy is not None
    assert set(examined.policy.tenants) == {"demo", "acme"}
    assert examined.policy.upstreams["default"].url == "http://127.0.0.1:8081/v1"
    process = settings.load(EXAMPLE, {})
    assert (process.listen.port, process.metrics.port, process.data_dir) == (8080, 9091, EXAMPLE.parent / ".data")
