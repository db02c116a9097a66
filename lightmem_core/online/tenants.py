"""Whose memories a request may name. The store knows users only; a tenant is part of their ids.

A user of the default tenant is stored under the id that was given, as the batch stores it. One of
another tenant is stored as "@TENANT/USER". What no user owns belongs to an agent or to a run, whose
ids are kept apart from the users' by "@agent/" and "@run/".
"""

from __future__ import annotations

import re

DEFAULT = ""
MARK = "@"
TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
LONGEST_ID = 256
UNFIT = re.compile("[\0-\x1f\x7f\ud800-\udfff]")


def checked_tenant(tenant: str) -> str:
    """Raise ValueError for what cannot be the name of a tenant."""
    if tenant != DEFAULT and not TENANT.fullmatch(tenant):
        raise ValueError(
            f"{tenant!r} cannot name a tenant: use small letters, digits and -, at most 63"
        )
    return tenant


def checked_id(value: str) -> str:
    """An id that a request may name. Raise ValueError for one that is empty, too long, reserved,
    or that no text can hold."""
    if not value.strip() or len(value) > LONGEST_ID:
        raise ValueError(f"an id has 1 to {LONGEST_ID} characters")
    if value.startswith(MARK):
        raise ValueError(f"an id does not begin with {MARK}: such ids are the server's own")
    if UNFIT.search(value):
        raise ValueError("an id holds no control characters and no half characters")
    return value


def stored_user(tenant: str, user_id: str = "", agent_id: str = "", run_id: str = "") -> str:
    """The store's id of a user; without one, of the agent, or else of the run."""
    named = (("", user_id), ("@agent/", agent_id), ("@run/", run_id))
    kind, owner = next(((kind, value) for kind, value in named if value), ("", ""))
    if not owner:
        raise ValueError("name a user, an agent or a run")
    plain = kind + checked_id(owner)
    return plain if tenant == DEFAULT and not kind else f"{MARK}{tenant}/{plain}"


def prefix_of(tenant: str) -> str:
    """What the ids of a tenant's users begin with. The default tenant's users begin with none."""
    return "" if tenant == DEFAULT else f"{MARK}{tenant}/"


def public_user(tenant: str, stored: str) -> str | None:
    """The id that the tenant knows, "" for what belongs to an agent or a run; None if the stored
    id is of another tenant."""
    if tenant == DEFAULT and not stored.startswith(MARK):
        return stored
    prefix = f"{MARK}{tenant}/"
    if not stored.startswith(prefix):
        return None
    owner = stored[len(prefix) :]
    return "" if owner.startswith(MARK) else owner
