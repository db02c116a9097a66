"""The commands around language models: what a run will cost, and what failed once more."""

from __future__ import annotations

import sys
from typing import Any

import click

from lightmem_core.formats import FORMATS
from lightmem_pipelines import output, output_llm
from lightmem_pipelines.options import budget, common, config_of, notes_shown, print_result

QUARANTINED = 4


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--format", "format", type=click.Choice(list(FORMATS)), help="Default: found out per file."
)
@click.option(
    "--users",
    default=50,
    show_default=True,
    type=click.IntRange(min=2),
    help="How many users to look at, spread over the input.",
)
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="The model's own tokenizer; default: the configured one counts.",
)
@common
def plan(
    sources: tuple[str, ...], path: str | None, store: str | None, as_json: bool, **asked: Any
) -> None:
    """Say what a backfill of SOURCE will ask a language model and what it will cost.

    Some users' messages are compressed, cut and packed as a backfill would do it; nothing is asked
    and nothing is stored.
    """
    from lightmem_pipelines.plan import PlanRequest
    from lightmem_pipelines.plan import plan as made

    found = made(config_of(path, store), PlanRequest(sources, **asked))
    print_result(output_llm.plan_json(found), output_llm.plan_text(found), as_json)


@click.command()
@click.argument("run")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@budget
@common
def retry(
    run: str, path: str | None, store: str | None, as_json: bool, no_progress: bool, **caps: Any
) -> None:
    """Extract again the messages that RUN quarantined, and no others.

    What failed in earlier retries of RUN is tried too. The same command finishes one that was cut
    off.
    """
    from lightmem_pipelines.retry import RetryRequest
    from lightmem_pipelines.retry import retry as try_again

    request = RetryRequest(run, progress=not no_progress and not as_json, **caps)
    with notes_shown():
        done = try_again(config_of(path, store), request)
    print_result(output.run_json(done), output.run_text(done), as_json)
    if done.report["messages"]["quarantined"]:
        sys.exit(QUARANTINED)
