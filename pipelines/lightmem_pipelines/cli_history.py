"""`lightmem history` and `lightmem undo`."""

from __future__ import annotations

import click

from lightmem_pipelines import output, output_history
from lightmem_pipelines.options import common, config_of, notes_shown, print_result


@click.command()
@click.argument("entry")
@common
def history(entry: str, path: str | None, store: str | None, as_json: bool) -> None:
    """Show all that ENTRY (an id, or its first letters) was: when, by which run, what changed."""
    from lightmem_core.long_term.store import MemoryStore
    from lightmem_core.long_term.versions import history

    found = history(MemoryStore.open(config_of(path, store).memory.store), entry)
    print_result(output_history.history_json(found), output_history.history_text(found), as_json)


@click.command()
@click.argument("run")
@common
def undo(run: str, path: str | None, store: str | None, as_json: bool) -> None:
    """Take back what the sleep RUN changed, and keep all that was written later.

    An undo is a run itself and can be undone. A sleep that was interrupted does not go on then.
    """
    from lightmem_pipelines.undo import undo_run

    with notes_shown():
        undone = undo_run(config_of(path, store), run)
    print_result(output.run_json(undone), output.run_text(undone), as_json)
