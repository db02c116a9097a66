"""`lightmem sleep`: consolidate now, or look first at what would change and apply it later."""

from __future__ import annotations

import click

from lightmem_pipelines import output
from lightmem_pipelines.options import budget, common, config_of, notes_shown, print_result


@click.command()
@click.option("--user", metavar="USER", help="Only this user's memories; default: everyone's.")
@click.option("--all", "every", is_flag=True, help="Judge again what nothing was added to.")
@click.option("--dry-run", is_flag=True, help="Decide and show what would change; change nothing.")
@click.option("--apply", "planned", metavar="RUN", help="Apply what a dry run has decided.")
@click.option("--resume", metavar="RUN", help="Finish an interrupted run under its own name.")
@click.option(
    "--examples",
    default=3,
    show_default=True,
    type=click.IntRange(0),
    help="How many changes of each kind a dry run shows.",
)
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@budget
@common
def sleep(
    path: str | None,
    store: str | None,
    as_json: bool,
    planned: str | None,
    examples: int,
    no_progress: bool,
    **asked: object,
) -> None:
    """Consolidate memories: merge what was said again, supersede what has changed.

    Only what is new since the last time is judged. The same command finishes a sleep that was cut
    off.
    """
    from lightmem_pipelines.examples import examples_of
    from lightmem_pipelines.output_sleep import example_json, example_text
    from lightmem_pipelines.sleep import SleepRequest, apply_planned
    from lightmem_pipelines.sleep import sleep as fall_asleep

    config = config_of(path, store)
    if planned is not None and any(asked.values()):
        raise click.UsageError("--apply stands alone: what is applied was decided before.")
    if asked["resume"] and (asked["user"] is not None or asked["every"] or asked["dry_run"]):
        raise click.UsageError("--resume stands alone: a run goes on as it was asked for at first.")
    with notes_shown():
        if planned is not None:
            run = apply_planned(config, planned)
        else:
            shows = not no_progress and not as_json
            request = {"user_id": asked.pop("user"), "progress": shows, **asked}
            run = fall_asleep(config, SleepRequest(**request))  # pyright: ignore[reportArgumentType]
    found = examples_of(config.memory.store, run, examples) if run.status == "planned" else []
    shown = {"examples": [example_json(e) for e in found]} if run.status == "planned" else {}
    text = "\n".join([output.run_text(run), *map(example_text, found)])
    print_result({**output.run_json(run), **shown}, text, as_json)
