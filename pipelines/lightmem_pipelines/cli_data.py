"""The commands that take a user's data out of a store, into it, or away."""

from __future__ import annotations

from typing import Any

import click

from lightmem_pipelines import output, output_data
from lightmem_pipelines.options import common, config_of, notes_shown, print_result


@click.command()
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def erase(user: str, yes: bool, path: str | None, store: str | None, as_json: bool) -> None:
    """Erase all that the store holds of USER, from its files too. It cannot be undone.

    No other run may be under way on the store, and none can start meanwhile. A reader that is in
    the middle of a read may have to start again.
    """
    from lightmem_pipelines.erase import erase

    config = config_of(path, store)
    if not yes:
        click.confirm(
            f"Erase everything of user {user!r} in {config.memory.store.uri}, for ever?",
            abort=True,
            err=True,
        )
    with notes_shown():
        run = erase(config, user)
    print_result(output.run_json(run), output.run_text(run), as_json)


@click.command(name="export")
@click.argument("users", nargs=-1, metavar="[USER]...")
@click.option("--to", "folder", required=True, metavar="FOLDER", help="A folder or URI, empty.")
@click.option(
    "--format",
    "format",
    type=click.Choice(["parquet", "jsonl"]),
    default="parquet",
    show_default=True,
)
@click.option("--no-vectors", is_flag=True, help="Leave them out: an import makes them again.")
@common
def export_command(
    users: tuple[str, ...],
    folder: str,
    path: str | None,
    store: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write the memories, their history and the messages of USERs, or of everyone, to FOLDER."""
    from lightmem_core.long_term.objects import filesystem
    from lightmem_core.long_term.store import MemoryStore
    from lightmem_core.long_term.transfer import ExportRequest, export
    from lightmem_pipelines.files import options_for

    config = config_of(path, store).memory.store
    opened = MemoryStore.open(config)
    request = ExportRequest(users, asked["format"], not asked["no_vectors"])
    counts = export(opened, *filesystem(folder, options_for(folder, config)), request)
    shape = {"format": request.format, "vectors": request.vectors}
    value = {"folder": folder, **shape, "rows": counts}
    print_result(value, output_data.export_text(folder, counts), as_json)


@click.command(name="import")
@click.argument("folder")
@common
def import_command(folder: str, path: str | None, store: str | None, as_json: bool) -> None:
    """Add what `lightmem export` wrote to FOLDER. Rows that the store has in a later state stay.

    The same command finishes an interrupted import, and changes nothing after a finished one.
    """
    from lightmem_pipelines.transfer import import_into

    with notes_shown():
        run = import_into(config_of(path, store), folder)
    print_result(output.run_json(run), output.run_text(run), as_json)


data_commands = (erase, export_command, import_command)
