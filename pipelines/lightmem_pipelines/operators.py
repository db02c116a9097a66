"""Run core stages on Ray Data. The one place where rows meet Arrow blocks and actors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from lightmem_core import factory
from lightmem_core.config import MemoryConfig, Pool
from lightmem_core.errors import STOPS
from lightmem_core.protocols import Stage
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import Buffer, Extracted, History, SegmentedHistory
from lightmem_pipelines.replies import RunReplies


@dataclass(frozen=True)
class Step:
    """A stage with the rows it reads and the rows it writes. One that may ask an LLM (`asks`) is
    also given where replies are kept."""

    make: Callable[..., Stage[Any, Any]]
    reads: type
    writes: type
    asks: bool = False


STEPS: dict[str, Step] = {
    "compress": Step(factory.compression, reads=History, writes=History),
    "segment": Step(factory.segmentation, reads=History, writes=SegmentedHistory),
    "buffer": Step(factory.buffering, reads=SegmentedHistory, writes=Buffer),
    "extract": Step(factory.extraction, reads=Buffer, writes=Extracted, asks=True),
    "embed": Step(factory.embedding, reads=Extracted, writes=Extracted),
}


@dataclass(frozen=True)
class Work:
    """What the actors of a run share: what they are built from, and whom they report to."""

    config: MemoryConfig
    monitor: Any
    replies: RunReplies


class PoolActor:
    """Build some consecutive stages once per actor, on the actor, so that no model is pickled.

    Once the run is stopped, what is not extracted yet comes out empty, and what is goes on to be
    committed.
    """

    def __init__(self, steps: Sequence[tuple[str, Step]], work: Work):
        self.reads, self.writes = steps[0][1].reads, steps[-1][1].writes
        self.replies, self.monitor = work.replies, work.monitor
        self.may_stop = work.config.llm is not None and self.reads is not Extracted
        self.extracts = self.writes is Extracted and self.reads is not Extracted
        self.stages = [(name, self._made(step, work.config)) for name, step in steps]

    def _made(self, step: Step, config: MemoryConfig) -> Stage[Any, Any]:
        if not step.asks:
            return step.make(config)
        return step.make(config, self.replies)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.may_stop and ray.get(self.monitor.stopped.remote()) is not None:
            return to_table([], self.writes)
        rows = from_table(batch, self.reads)
        for name, stage in self.stages:
            count, started = len(rows), time.perf_counter()
            rows = self._through(stage, rows)
            self.monitor.step.remote(name, count, time.perf_counter() - started)
        if self.extracts:
            self.monitor.add.remote(
                messages=sum(len(row.messages) for row in rows),
                entries=sum(len(row.entries) for row in rows),
            )
        return to_table(rows, self.writes)

    def _through(self, stage: Stage[Any, Any], rows: Sequence[Any]) -> list[Any]:
        """Where the LLM is gone, or may cost no more: the rows whose replies are there."""
        try:
            return stage(rows)
        except STOPS as error:
            self.replies.close(error)
            ray.get(self.monitor.stop_for.remote(error))
        return [out for row in rows for out in self._paid_for(stage, row)]

    def _paid_for(self, stage: Stage[Any, Any], row: Any) -> list[Any]:
        try:
            return stage([row])
        except STOPS:
            return []


def apply(
    data: ray.data.Dataset, steps: Sequence[tuple[str, Step]], pool: Pool, work: Work
) -> ray.data.Dataset:
    """Map `steps` over `data` on the actors of one pool."""
    low, high = pool.actors
    if pool.batches > 1:
        # Ray runs a task a block, and the batches of a block one after the other.
        data = data.repartition(target_num_rows_per_block=pool.batch_size)
    return data.map_batches(
        PoolActor,
        fn_constructor_kwargs={"steps": steps, "work": work},
        batch_size=pool.batch_size,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        compute=ray.data.ActorPoolStrategy(
            min_size=low,
            max_size=high,
            max_concurrent_calls_per_actor=pool.batches if pool.batches > 1 else None,
            enable_true_multi_threading=pool.batches > 1,
        ),
    )
