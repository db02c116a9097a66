"""The `lightmem` command: each one parses, calls one function and prints what it gives.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 wrong configuration, 4 done but some messages are
quarantined; 5 stopped because the language model is gone, 6 because the budget is spent: the same
command goes on. Ray and the models are imported by the commands that need them: help is instant.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from lightmem_core.errors import BudgetError, ConfigError, LightMemError, LLMUnavailableError
from lightmem_core.formats import FORMATS
from lightmem_pipelines import output
from lightmem_pipelines.cli_data import data_commands
from lightmem_pipelines.cli_history import history, undo
from lightmem_pipelines.cli_keys import keys
from lightmem_pipelines.cli_llm import plan, retry
from lightmem_pipelines.cli_reembed import reembed
from lightmem_pipelines.cli_sleep import sleep
from lightmem_pipelines.options import budget, common, config_of, notes_shown, print_result
from lightmem_pipelines.times import TIME, last_moment

FAILED, QUARANTINED = 1, 4
EXIT_CODES = {ConfigError: 3, LLMUnavailableError: 5, BudgetError: 6}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lightmem-ray")
def lightmem() -> None:
    """Turn the chat history of many users into searchable memories, and keep them up to date."""


@lightmem.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option(
    "--format", "format", type=click.Choice(list(FORMATS)), help="Default: found out per file."
)
@click.option("--max-bad-rows", type=click.IntRange(min=0), help="Stop when more cannot be read.")
@click.option("--resume", metavar="RUN", help="Finish an interrupted run under its own name.")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@budget
@common
def backfill(
    sources: tuple[str, ...], path: str | None, store: str | None, as_json: bool, **asked: Any
) -> None:
    """Store the memories of all messages in SOURCE: files, folders, globs, object-store URIs.

    Messages that the store holds are not extracted again, so the same command can be repeated.
    `--resume RUN` alone takes the sources of that run.
    """
    from lightmem_pipelines.backfill import BackfillRequest, backfill

    if not sources and not asked["resume"]:
        raise click.UsageError("Missing argument 'SOURCE...', or --resume RUN.")
    progress = not asked.pop("no_progress") and not as_json
    request = BackfillRequest(sources, **asked, progress=progress)
    with notes_shown():
        run = backfill(config_of(path, store), request)
    print_result(output.run_json(run), output.run_text(run), as_json)
    if run.report["messages"]["quarantined"]:
        sys.exit(QUARANTINED)


@lightmem.command()
@click.argument("user")
@click.argument("text")
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--since", type=TIME, help="Said at this time or later (ISO 8601; a day is UTC).")
@click.option("--until", type=TIME, help="Said at this time or earlier; a day counts whole.")
@click.option("--as-of", type=TIME, help="As the memories were at this time; a day counts whole.")
@common
def search(
    user: str, text: str, path: str | None, store: str | None, as_json: bool, **bounds: Any
) -> None:
    """Show the memories of USER that answer TEXT, best first."""
    from lightmem_core import factory
    from lightmem_core.long_term.retrieve import Query

    since, until, as_of = bounds["since"], bounds["until"], bounds["as_of"]
    query = Query(
        user,
        text,
        bounds["limit"],
        since.at if since else None,
        last_moment(until) if until else None,
        last_moment(as_of) if as_of else None,
    )
    hits = factory.retrieval(config_of(path, store).memory)([query])[0]
    print_result([output.hit_json(hit) for hit in hits], output.hits_text(hits, user), as_json)


@lightmem.command()
@click.argument("entry")
@common
def show(entry: str, path: str | None, store: str | None, as_json: bool) -> None:
    """Show where ENTRY (an id, or its first letters) came from and what became of it."""
    from lightmem_core.long_term.provenance import provenance
    from lightmem_core.long_term.store import MemoryStore

    found = provenance(MemoryStore.open(config_of(path, store).memory.store), entry)
    print_result(output.provenance_json(found), output.provenance_text(found), as_json)


@lightmem.command()
@click.argument("run", required=False)
@click.option("--all", "every", is_flag=True, help="List the latest runs instead.")
@common
def report(
    run: str | None, every: bool, path: str | None, store: str | None, as_json: bool
) -> None:
    """Show the report of RUN, or of the latest run."""
    from lightmem_core.long_term.store import MemoryStore

    ledger = MemoryStore.open(config_of(path, store).memory.store).runs
    if every:
        runs = ledger.latest()
        print_result([output.run_json(r) for r in runs], output.runs_text(runs), as_json)
        return
    found = ledger.get(run) if run else ledger.newest()
    print_result(output.run_json(found), output.run_text(found), as_json)


@lightmem.command(name="eval")
@click.argument("dataset", type=click.Choice(["locomo", "longmemeval"]))
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@common
def evaluate(dataset: str, file: str, path: str | None, store: str | None, as_json: bool) -> None:
    """Measure how much of each question's evidence the memories find, beside raw messages."""
    from lightmem_pipelines.evaluation import evaluate, render_text

    tell = None if as_json else partial(click.echo, err=True)
    measured = evaluate(config_of(path, store), dataset, file, tell)
    print_result(measured.as_dict(), render_text(measured), as_json)


lightmem.add_command(sleep)
lightmem.add_command(plan)
lightmem.add_command(retry)
lightmem.add_command(reembed)
lightmem.add_command(history)
lightmem.add_command(undo)
lightmem.add_command(keys)

for data_command in data_commands:
    lightmem.add_command(data_command)


def main() -> None:
    """Run the command. Our own errors are one line; a bug is a traceback."""
    try:
        lightmem()
    except LightMemError as error:
        click.echo(f"lightmem: {error}", err=True)
        codes = (code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        sys.exit(next(codes, FAILED))
