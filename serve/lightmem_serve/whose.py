"""What the headers of a request say of its user and its session."""

from starlette.datastructures import Headers

from lightmem_core.online.tenants import LONGEST_ID
from lightmem_serve.access import Caller
from lightmem_serve.errors import refused

USER, SESSION = "X-User-Id", "X-Session-Id"


def header(headers: Headers, name: str) -> str | None:
    """A header's value, None if it has none. It may hold UTF-8."""
    value = headers.get(name, "").strip()
    try:
        return value.encode("latin-1").decode("utf-8") or None
    except UnicodeDecodeError:
        return value


def session_of(headers: Headers, given: str | None, default: str) -> str:
    """The session that a request names, in its header or else in `given`."""
    session = header(headers, SESSION) or given or default
    if len(session) > LONGEST_ID:
        raise refused(422, f"a session's id has at most {LONGEST_ID} characters")
    return session


def owner_of(headers: Headers, caller: Caller, given: str | None = None) -> str:
    """The store's id of whose memories are meant. A key of one user means that user; else the user
    is named, in the header or in `given`."""
    named = header(headers, USER)
    if named and given and named != given:
        raise refused(400, f"the request names two users, one in the header {USER}")
    if not (named or given or caller.user_id):
        raise refused(400, f"whose memories? Name the user in the header {USER}")
    return caller.owner(named or given)
