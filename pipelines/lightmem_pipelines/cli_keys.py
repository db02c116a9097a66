"""`lightmem keys`: who may use the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lightmem_core.errors import ConfigError
from lightmem_pipelines.options import common, config_of, print_result
from lightmem_pipelines.output import iso

if TYPE_CHECKING:
    from lightmem_core.online.keys import Key, KeyRing


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that open the server."""


@keys.command()
@click.option("--name", default="", help="What the key is for.")
@click.option("--tenant", default="", metavar="TENANT", help="Default: the users without one.")
@click.option("--user", default="", metavar="USER", help="Only this user's memories.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("read", "write"),
    show_default=True,
    type=click.Choice(["read", "write", "admin"]),
    help="Can be repeated. Only admin erases, and it reads and writes too.",
)
@click.option(
    "--per-minute", default=0, type=click.IntRange(0), help="Requests; 0: the server's own limit."
)
@common
def create(path: str | None, store: str | None, as_json: bool, **asked: Any) -> None:
    """Make a key and print it. It is shown this once: the store keeps a hash."""
    from lightmem_core.online.keys import NewKey

    try:
        key, text = _ring(path, store).create(NewKey(**asked))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print_result({**_shown(key), "key": text}, f"{text}\n{_line(key)}", as_json)


@keys.command(name="list")
@common
def list_keys(path: str | None, store: str | None, as_json: bool) -> None:
    """List the keys, revoked ones too."""
    found = _ring(path, store).all()
    text = "\n".join(map(_line, found)) or "there are no keys: see `lightmem keys create`"
    print_result([_shown(key) for key in found], text, as_json)


@keys.command()
@click.argument("key")
@common
def revoke(key: str, path: str | None, store: str | None, as_json: bool) -> None:
    """Revoke KEY, an id that `list` shows. Running servers refuse it within seconds."""
    found = _ring(path, store).revoke(key)
    print_result(_shown(found), _line(found), as_json)


def _ring(path: str | None, store: str | None) -> KeyRing:
    from lightmem_core.long_term.store import MemoryStore
    from lightmem_core.online.keys import KeyRing

    return KeyRing(MemoryStore.open(config_of(path, store).memory.store).database)


def _shown(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "user_id": key.user_id or None,
        "scopes": list(key.scopes),
        "per_minute": key.per_minute or None,
        "created_at": iso(key.created_at),
        "revoked_at": iso(key.revoked_at) if key.revoked else None,
    }


def _line(key: Key) -> str:
    opens = key.user_id or (f"tenant {key.tenant}" if key.tenant else "the default tenant")
    state = f"revoked {iso(key.revoked_at)}" if key.revoked else f"made {iso(key.created_at)}"
    limit = f", {key.per_minute} requests a minute" if key.per_minute else ""
    name = f"  {key.name}" if key.name else ""
    return f"{key.id}  {opens}  {'+'.join(key.scopes)}{limit}  {state}{name}"
