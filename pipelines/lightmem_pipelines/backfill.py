"""Histories in, memories out: read, group by user, run the stages, commit, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from lightmem_core import factory
from lightmem_core.config import Config, MemoryConfig
from lightmem_core.errors import InputError
from lightmem_core.formats import FORMATS
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.types import History, stable_id
from lightmem_pipelines.cluster import ray_session
from lightmem_pipelines.commit import Admission, Commit, Committers
from lightmem_pipelines.durations import duration
from lightmem_pipelines.files import InputFile, RunFiles, find_files
from lightmem_pipelines.monitor import Progress, shown, start_monitor
from lightmem_pipelines.operators import STEPS, Step, apply
from lightmem_pipelines.reading import Reader, read_histories
from lightmem_pipelines.report import BackfillReport, backfill_report
from lightmem_pipelines.running import running

SHARDS_A_COMMIT = 16  # so many shards get their full share of a batch: it is held in memory


@dataclass(frozen=True, slots=True)
class BackfillRequest:
    """What to read. `resume` names an interrupted run, to be finished under its own name."""

    sources: tuple[str, ...]
    format: str | None = None
    max_bad_rows: int | None = None
    resume: str | None = None
    progress: bool = True


def backfill(config: Config, request: BackfillRequest) -> Run:
    """Store the memories of all messages in the sources, each once, and return the finished run.

    Raise ConfigError or InputError before anything is started, ReconcileError if a message cannot
    be accounted for.
    """
    factory.check(config.memory)
    if request.format is not None and request.format not in FORMATS:
        raise InputError(f"there is no format {request.format!r}: use one of {sorted(FORMATS)}")
    files = find_files(request.sources, config.memory.store)
    model = VectorModel.of(factory.embedder(config.memory))
    store = MemoryStore.create(config.memory.store, model)
    parts = config.memory.model_dump_json(exclude={"store"})
    asked = {
        "sources": list(request.sources),
        "format": request.format,
        "config": stable_id(parts)[:12],
    }
    with running(store, "backfill", asked, request.resume) as run:
        with ray_session(config.pipelines):
            report = _run(config, request, store, files, run.id)
        run.report = report.as_dict()
    return run.finished


def _run(
    config: Config,
    request: BackfillRequest,
    store: MemoryStore,
    files: Sequence[InputFile],
    run_id: str,
) -> BackfillReport:
    started = time.perf_counter()
    run_files = RunFiles.of(config.memory.store, run_id)
    for kind in ("read", "quarantine"):
        run_files.clear(kind)
    monitor = start_monitor(request.max_bad_rows)
    reader = Reader(run_files, monitor, request.format, config.pipelines.input.timezone)
    histories = read_histories(files, reader, config.pipelines.input.grouped)
    committers = Committers(config.memory.store, store.model)
    outcomes = _stages(config, histories, run_id, monitor)
    outcomes = outcomes.map_batches(
        Commit(committers, run_id),
        batch_size=config.pipelines.commit_buffers * min(store.shard_count, SHARDS_A_COMMIT),
        batch_format="pyarrow",
        num_cpus=0.1,
    )
    with shown(monitor, partial(_line, len(files)), request.progress):
        duplicates = sum(
            sum(pa.table(batch)["duplicates"].to_pylist())
            for batch in outcomes.iter_batches(batch_format="pyarrow", batch_size=None)
        )
        committers.compact()
    progress: Progress = ray.get(monitor.read.remote())  # pyright: ignore[reportAssignmentType]
    seconds = time.perf_counter() - started
    report = backfill_report(store, run_files, duplicates, progress, seconds)
    report.messages.reconcile()
    return report


def _stages(config: Config, data: ray.data.Dataset, run_id: str, monitor: Any) -> ray.data.Dataset:
    """The stages, pool by pool; admission runs in front, on the first pool."""

    def admission(memory: MemoryConfig) -> Admission:
        return Admission(memory.store, run_id)

    front = [("admit", Step(admission, reads=History, writes=History))]
    for pool in config.pipelines.pools:
        steps = [*front, *((name, STEPS[name]) for name in pool.steps)]
        data, front = apply(data, steps, config.memory, pool, monitor), []
    return data


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
