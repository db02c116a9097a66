"""Histories in, memories out: read, group by user, run the stages, commit, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import ray

from lightmem_core import factory
from lightmem_core.config import Config, MemoryConfig
from lightmem_core.errors import InputError
from lightmem_core.fingerprint import fingerprint
from lightmem_core.formats import FORMATS
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.types import History
from lightmem_pipelines.budget import Budget, prices_of
from lightmem_pipelines.cluster import ray_session
from lightmem_pipelines.commit import Admission
from lightmem_pipelines.durations import duration
from lightmem_pipelines.files import InputFile, find_files
from lightmem_pipelines.monitor import Progress
from lightmem_pipelines.operators import STEPS, Step
from lightmem_pipelines.reading import Reader, read_histories
from lightmem_pipelines.report import BackfillReport, backfill_report
from lightmem_pipelines.running import running, varying
from lightmem_pipelines.storing import Storing


@dataclass(frozen=True, slots=True)
class BackfillRequest:
    """What to read, and the most that the run may pay for. `resume` names an interrupted run, to be
    finished under its own name: without sources, with its own."""

    sources: tuple[str, ...]
    format: str | None = None
    max_bad_rows: int | None = None
    resume: str | None = None
    progress: bool = True
    budget_tokens: int | None = None
    budget_money: float | None = None


def backfill(config: Config, request: BackfillRequest) -> Run:
    """Store the memories of all messages in the sources, each once, and return the finished run.

    Raise ConfigError or InputError before anything is started, ReconcileError if a message cannot
    be accounted for, LLMUnavailableError or BudgetError if the run had to stop and can go on later.
    """
    config = factory.shipped(config)
    if request.format is not None and request.format not in FORMATS:
        raise InputError(f"there is no format {request.format!r}: use one of {sorted(FORMATS)}")
    request = _with_sources(config, request)
    budget = Budget.asked(request.budget_tokens, request.budget_money, prices_of(config.memory))
    files = find_files(request.sources, config.memory.store)
    model = VectorModel.of(factory.embedder(config.memory))
    store = MemoryStore.create(config.memory.store, model)
    asked = {
        "sources": list(request.sources),
        "format": request.format,
        "config": fingerprint(config.memory),
    }
    asked |= varying(config.memory)
    with running(store, "backfill", asked, request.resume) as run:
        with ray_session(config.pipelines):
            cap = request.max_bad_rows
            storing = Storing.of(config, store, run.id, budget, max_bad_rows=cap)
            report = _run(storing, request, files)
        run.report = report.as_dict(prices_of(config.memory))
    return run.finished


def _with_sources(config: Config, request: BackfillRequest) -> BackfillRequest:
    """The sources and the format of the run to resume, where the request names no sources."""
    if request.sources:
        return request
    if request.resume is None:
        raise InputError("name what to read, or an interrupted run to resume")
    run = MemoryStore.open(config.memory.store).runs.get(request.resume)
    if run.kind != "backfill":
        raise InputError(f"{run.id} is a {run.kind}: name a backfill to resume")
    sources, format = run.request["sources"], request.format or run.request["format"]
    return replace(request, sources=tuple(sources), format=format)


def _run(storing: Storing, request: BackfillRequest, files: Sequence[InputFile]) -> BackfillReport:
    started = time.perf_counter()
    for kind in ("read", "quarantine"):
        storing.files.clear(kind)
    options = storing.config.pipelines.input
    reader = Reader(storing.files, storing.monitor, request.format, options.timezone)
    histories = read_histories(files, reader, options.grouped, storing.store.shard_count)
    run_id = storing.files.run_id

    def admission(memory: MemoryConfig) -> Admission:
        return Admission(memory.store, run_id)

    front = [("admit", Step(admission, reads=History, writes=History))]
    line = partial(_line, len(files)) if request.progress else None
    duplicates = storing.run(histories, STEPS, front, line)
    progress: Progress = ray.get(storing.monitor.read.remote())  # pyright: ignore[reportAssignmentType]
    seconds = time.perf_counter() - started
    report = backfill_report(storing.store, storing.files, duplicates, progress, seconds)
    report.messages.reconcile()
    return report


def _line(files: int, progress: Progress, seconds: float) -> str:
    counts = progress.counts
    read, done = counts["read"], counts["messages"]
    users = progress.rows["admit"]
    text = f"{users:,} users · {done:,} of {read:,} messages · {counts['entries']:,} entries"
    text += f" · {counts['calls']:,} LLM calls · {duration(seconds)}"
    if counts["files"] < files:
        return f"{text} · reading file {counts['files'] + 1:,} of {files:,}"
    if 0 < done < read:
        return f"{text} · about {duration(seconds * (read - done) / done)} left"
    return text
