"""`lightmem reembed`."""

from __future__ import annotations

import click

from lightmem_pipelines import output
from lightmem_pipelines.options import common, config_of, notes_shown, print_result


@click.command()
@click.option(
    "--drop-old", is_flag=True, help="Remove the old vectors; servers must have been restarted."
)
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@common
def reembed(
    drop_old: bool, no_progress: bool, path: str | None, store: str | None, as_json: bool
) -> None:
    """Move the store to the configured embedder, while it is in use.

    An interrupted move goes on where it was with the same command. Servers with the old embedder
    answer from the old vectors until these are removed with --drop-old.
    """
    from lightmem_pipelines.reembed import ReembedRequest, reembed

    request = ReembedRequest(drop_old, not no_progress and not as_json)
    with notes_shown():
        run = reembed(config_of(path, store), request)
    print_result(output.run_json(run), output.run_text(run), as_json)
