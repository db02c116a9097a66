"""Histories through the stages and into the store: what a backfill and a retry have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from lightmem_core import factory
from lightmem_core.config import Config, Pool
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.budget import Budget
from lightmem_pipelines.cluster import object_stores
from lightmem_pipelines.commit import Commit, Committers
from lightmem_pipelines.files import RunFiles
from lightmem_pipelines.monitor import check_stopped, shown, start_monitor
from lightmem_pipelines.operators import Step, Work, apply
from lightmem_pipelines.replies import RunReplies, shared_out, usage

SHARDS_A_COMMIT = 16  # so many shards get their full share of a batch: it is held in memory
STORE_SHARE = 8  # a batch takes an eighth of an object store: other steps want room in it, too
ENTRY_TOKENS, ENTRY_BYTES = 25, 500  # of a buffer and of an entry with its messages, about

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Storing:
    """A run that writes memories, with the actor that watches it."""

    config: Config
    store: MemoryStore
    files: RunFiles
    monitor: Any
    budget: Budget

    @classmethod
    def of(
        cls, config: Config, store: MemoryStore, run_id: str, budget: Budget, **watched: Any
    ) -> Storing:
        """What earlier attempts of the run have paid for counts towards its budget."""
        files = RunFiles.of(config.memory.store, run_id)
        monitor = start_monitor(budget=budget, usage=usage(files), **watched)
        return cls(config, store, files, monitor, budget)

    def run(
        self,
        histories: ray.data.Dataset,
        steps: Mapping[str, Step],
        front: Sequence[tuple[str, Step]] = (),
        line: Callable[..., str] | None = None,
    ) -> int:
        """Take histories through the steps and commit what comes out; return the number of
        duplicates. `front` runs before the steps of the first pool, `line` shows the progress.

        Raise LLMUnavailableError or BudgetError, after what could be done is committed.
        """
        _advise(self.config)
        committers = Committers(self.config, self.store.model)
        outcomes = self._through(histories, steps, front).map_batches(
            Commit(committers, self.files.run_id, self.monitor),
            batch_size=self._buffers_a_batch(),
            batch_format="pyarrow",
            num_cpus=0.1,
            # Each is a process that holds a batch, which mostly is of two shards.
            compute=ray.data.TaskPoolStrategy(size=max(1, len(committers.actors) // 2)),
        )
        with shown(self.monitor, line, line is not None):
            duplicates = sum(
                sum(pa.table(batch)["duplicates"].to_pylist())
                for batch in outcomes.iter_batches(batch_format="pyarrow", batch_size=None)
            )
            check_stopped(self.monitor)
            committers.compact()
        return duplicates

    def _buffers_a_batch(self) -> int:
        wanted = self.config.pipelines.commit_buffers * min(self.store.shard_count, SHARDS_A_COMMIT)
        entries = self.config.memory.buffer_tokens / ENTRY_TOKENS
        each = entries * (ENTRY_BYTES + 4 * self.store.model.dim)
        return max(1, min(wanted, int(min(object_stores()) / STORE_SHARE / each)))

    def _through(
        self,
        data: ray.data.Dataset,
        steps: Mapping[str, Step],
        front: Sequence[tuple[str, Step]],
    ) -> ray.data.Dataset:
        memory = shared_out(self.config.memory, extracting(self.config).actors[1])
        replies = RunReplies.of(memory, self.files, self.monitor, self.budget.capped)
        work = Work(memory, self.monitor, replies)
        for pool in self.config.pipelines.pools:
            own = [*front, *((name, steps[name]) for name in pool.steps)]
            data, front = apply(data, own, pool, work), []
        return data


def extracting(config: Config) -> Pool:
    """The pool whose actors ask the language model."""
    return next(pool for pool in config.pipelines.pools if "extract" in pool.steps)


def _advise(config: Config) -> None:
    """Batch after batch, each waits for its last reply, and few requests are in flight."""
    if extracting(config).batches == 1 and factory.asks_llm("generator", config.memory.generator):
        log.warning(
            "few requests will be in flight: give the step extract a pool of its own with several "
            "batches, as in pipelines/configs/openai.yaml"
        )
