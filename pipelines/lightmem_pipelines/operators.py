"""Run core stages on Ray Data. The one place where rows meet Arrow blocks and actors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from lightmem_core import factory
from lightmem_core.config import MemoryConfig, Pool
from lightmem_core.protocols import Stage
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import Buffer, Extracted, History, SegmentedHistory


@dataclass(frozen=True)
class Step:
    """A stage with the rows it reads and the rows it writes."""

    make: Callable[[MemoryConfig], Stage[Any, Any]]
    reads: type
    writes: type


STEPS: dict[str, Step] = {
    "compress": Step(factory.compression, reads=History, writes=History),
    "segment": Step(factory.segmentation, reads=History, writes=SegmentedHistory),
    "buffer": Step(factory.buffering, reads=SegmentedHistory, writes=Buffer),
    "extract": Step(factory.extraction, reads=Buffer, writes=Extracted),
    "embed": Step(factory.embedding, reads=Extracted, writes=Extracted),
}


class PoolActor:
    """Build some consecutive stages once per actor, on the actor, so that no model is pickled."""

    def __init__(self, steps: Sequence[tuple[str, Step]], config: MemoryConfig, monitor: Any):
        self.reads, self.writes = steps[0][1].reads, steps[-1][1].writes
        self.stages = [(name, step.make(config)) for name, step in steps]
        self.monitor = monitor

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = from_table(batch, self.reads)
        for name, stage in self.stages:
            count, started = len(rows), time.perf_counter()
            rows = stage(rows)
            self.monitor.step.remote(name, count, time.perf_counter() - started)
        if self.writes is Extracted:
            self.monitor.add.remote(
                messages=sum(len(row.messages) for row in rows),
                entries=sum(len(row.entries) for row in rows),
            )
        return to_table(rows, self.writes)


def apply(
    data: ray.data.Dataset,
    steps: Sequence[tuple[str, Step]],
    config: MemoryConfig,
    pool: Pool,
    monitor: Any,
) -> ray.data.Dataset:
    """Map `steps` over `data` on the actors of one pool."""
    low, high = pool.actors
    return data.map_batches(
        PoolActor,
        fn_constructor_kwargs={"steps": steps, "config": config, "monitor": monitor},
        batch_size=pool.batch_size,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high),
    )
