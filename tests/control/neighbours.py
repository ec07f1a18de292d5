"""What one tenant may ask about another's things, and the same about things that never were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from proxy.control.table import OPERATIONS, Operation
from tests.control.admin import Admin

Question = tuple[str, dict[str, Any] | None]  # path and body

MISSING = {
    "key_id": "key_00000000000000",
    "user_id": "usr_00000000000000000000",
    "session_id": "ses_00000000000000000000",
    "invite_id": "inv_00000000000000000000",
    "tenant": "nowhere",
    "place": "nowhere",
}


def bodies(operation: Operation, tenant: str) -> list[dict[str, Any] | None]:
    """Bodies that are right in form; those that may name a tenant name this one."""
    match operation.id:
        case "create_key":
            return [{"tenant": tenant}, {"tenant": tenant, "owner": "x", "plan": "small"}]
        case "revoke_keys":
            return [{"tenant": tenant}, {"tenant": tenant, "owner": "x"}]
        case "create_user":
            return [{"tenant": tenant, "name": "n"}]
        case "create_invite":
            return [{"tenant": tenant, "role": "tenant_admin"}]
        case "put_membership":
            return [{"role": "tenant_member"}]
        case "create_session":
            return [{"id_token": "a.b.c", "tenant": tenant}]
        case "switch_session":
            return [{"tenant": tenant}]
        case "redeem_invite":
            return []
    return [{}] if operation.body is not None else [None]


def questions(names: Mapping[str, str], tenant: str) -> Iterator[tuple[Operation, str, dict[str, Any] | None]]:
    """(operation, path, body) for every operation, with these in every place where an identifier may stand."""
    for operation in OPERATIONS:
        queries = [""]
        if operation.query is not None and not operation.names:
            need = "model=m&" if operation.id == "get_effective" else ""
            taken = [name for name in ("tenant", "key_id", "user_id") if name in operation.query.__struct_fields__]
            queries = [f"?{need}{name}={{{name}}}" for name in taken]
        for query in queries:
            path = operation.path + query
            for name, value in names.items():
                path = path.replace(f"{{{name}}}", value)
            for body in bodies(operation, tenant):
                yield operation, path, body


class Neighbour(NamedTuple):
    """A member of globex with a key, a session and an invite: `names` holds the identifier for each place."""

    token: str
    key_id: str
    names: dict[str, str]


async def move_in(api: Admin) -> Neighbour:
    """Makes them."""
    user, token = await api.person("tenant_member", "globex")
    row, _ = await api.key("globex", owner=user.user_id)
    (session,) = (await api.call("GET", f"/sessions?user_id={user.user_id}", api.root)).said["items"]
    invite, _ = await api.invite("globex", "tenant_member")
    names = {
        "key_id": row.key_id,
        "user_id": user.user_id,
        "session_id": session["session_id"],
        "invite_id": invite.invite_id,
        "tenant": "globex",
        "place": "globex",
    }
    return Neighbour(token, row.key_id, names)


def pairs(names: Mapping[str, str]) -> Iterator[tuple[Operation, Question, Question]]:
    """Every operation with an identifier in it: about globex's thing, and about one that never was."""
    for (operation, *theirs), (_, *nobodys) in zip(
        questions(names, "globex"), questions(MISSING, "nowhere"), strict=True
    ):
        if theirs != nobodys:  # else nothing in it names anything
            yield operation, (theirs[0], theirs[1]), (nobodys[0], nobodys[1])
