"""Pass 3 for `issuers`: an issuer that could not be asked for its keys, or that would speak for nobody."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from proxy import bounds
from proxy.policy.issuing import Access, Issuer
from proxy.policy.load import Files, file_complaint
from proxy.policy.meaning_certificates import Wrong, certificate_complaint
from proxy.policy.problems import Problem, instead
from proxy.policy.schema import EVERY

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def address_complaint(address: str, *, http_loopback: bool) -> str | None:
    """The sentence about an address that keys must not be fetched from; None when they may be."""
    try:
        url = urlsplit(address)
        _ = url.port  # reading it raises for one that is none
    except ValueError:
        return "not an address; write https://host/path"
    if url.scheme not in ("http", "https") or not url.hostname or not all("!" <= letter <= "~" for letter in address):
        return "not an address; write https://host/path"
    if url.username is not None or url.password is not None:
        return "a credential cannot stand in it; remove what precedes @"
    if url.scheme == "http":
        if url.hostname not in _LOOPBACK:
            return "http: whoever is on the way could give us keys of their own; write https"
        if not http_loopback:
            return "http: write https, or allow it on the loopback by http_loopback: true"
    return None


def judge_issuers(files: Files, problems: list[Problem]) -> None:
    """Adds what is wrong with each issuer to `problems`."""
    weir = files.weir
    if weir.value is None:
        return
    tenants = [each.value.name for each in files.tenants if each.value is not None]
    first: dict[str, str] = {}

    def wrong(sentence: str, *path: str | int) -> None:
        problems.append(weir.problem(path, sentence))

    for name, issuer in weir.value.issuers.items():
        at = ("issuers", name)
        if issuer.issuer in first:
            where = weir.source("issuers", first[issuer.issuer], "issuer")
            wrong(f"the same issuer as at {where}; name every tenant and audience in one entry", *at, "issuer")
        first.setdefault(issuer.issuer, name)
        for index, tenant in enumerate(issuer.tenants):
            # A tenant whose file is too wrong to be read is reported as that, and not as unknown.
            if tenant not in tenants and not any(Path(each.file).stem == tenant for each in files.tenants):
                sentence = f"unknown tenant {tenant}; {instead(tenant, tenants, 'no tenant is known')}"
                wrong(sentence, *at, "tenants", index)
        if issuer.stale_seconds < 2 * issuer.refresh_seconds:
            sentence = f"less than two refreshes ({issuer.refresh_seconds} s each); one lost answer would refuse calls"
            wrong(sentence, *at, "stale_seconds")
        if issuer.claims.tags is not None and len(issuer.claims.tags) > bounds.TAGS_MAX:
            wrong(f"more than {bounds.TAGS_MAX} tags; reports could not be read", *at, "claims", "tags")
        _sources(files, issuer, at, wrong)
        for kind, entries in (("groups", issuer.groups), ("roles", issuer.roles)):
            for group, access in entries.items():
                _models(files, access, (*at, kind, group), wrong)


def _sources(files: Files, issuer: Issuer, at: tuple[str, ...], wrong: Wrong) -> None:
    """Where the keys come from. An issuer with keys of its own place may be called anything."""
    if issuer.keys is None:
        complaint = address_complaint(issuer.issuer, http_loopback=issuer.http_loopback)
        if complaint is None and ("?" in issuer.issuer or "#" in issuer.issuer):
            complaint = "an issuer whose keys are discovered has no query and no fragment; write keys"
        if complaint is not None:
            wrong(complaint, *at, "issuer")
    elif issuer.keys.startswith("file:"):
        if not issuer.keys.startswith("file:/"):
            wrong("the keys' file needs an absolute path: file:/path", *at, "keys")
        elif (unreadable := file_complaint(Path(issuer.keys.removeprefix("file:")))) is not None:
            wrong(unreadable, *at, "keys")
    else:
        complaint = address_complaint(issuer.keys, http_loopback=issuer.http_loopback)
        if complaint is not None:
            wrong(complaint, *at, "keys")
    if issuer.ca_bundle is not None:
        complaint = certificate_complaint(files.base / issuer.ca_bundle)
        if complaint is not None:
            wrong(complaint, *at, "ca_bundle")


def _models(files: Files, access: Access, at: tuple[str, ...], wrong: Wrong) -> None:
    known = files.weir.named("models")
    for index, model in enumerate(access.models or []):
        if model != EVERY and model not in known and EVERY not in known and known:
            sentence = f"unknown model {model}; {instead(model, known, 'no model is known')}"
            wrong(sentence, *at, "models", index)
