"""Ray for the length of a command: the cluster that is there, or one of its own."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext
from ray.exceptions import RayError

from lightmem_core.config import PipelinesConfig
from lightmem_core.errors import ConfigError, LightMemError

# Ray and its workers read these when they start. Idle workers would be stopped after a second and
# started again, at seconds each: let them wait a little, but not for good, since each may come to
# hold all of the object store. One worker spills and one restores: more are no faster here. And let
# memory that is freed go back to the system: without that the peak at 10,000 users is higher by
# half. Only what is larger than 4 MiB is mapped by itself: with a threshold for trimming alone,
# every product of a model would be, which makes its forward passes a quarter slower. And let a task
# hand over 64 KiB of small results at most by itself, not 10 MiB: they lie in the memory of the
# process that asked, and what a shuffle in a small object store hands over is the whole input.
LOCAL_RAY = {
    "RAY_idle_worker_killing_time_threshold_ms": "5000",
    "RAY_num_workers_soft_limit": "2",
    "RAY_max_io_workers": "1",
    "RAY_task_rpc_inlined_bytes_limit": "65536",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
}
SMALL = 1 << 30  # bytes of an object store, below which Ray Data would wait for room in it


@contextmanager
def ray_session(config: PipelinesConfig) -> Iterator[None]:
    """Connect to Ray, quietly, and leave it as it was found."""
    mine = not ray.is_initialized()
    if mine:
        _start(config)
    cpus = 1 + sum(pool.actors[0] * pool.cpus for pool in config.pools)  # one of them to read
    gpus = sum(pool.actors[0] * pool.gpus for pool in config.pools)
    check_room("pipelines.pools", CPU=cpus, GPU=gpus)
    for name in ("ray.data", "ray.data.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with DataContext.current(_data_context()):
            yield
    except RayError as error:
        if (own := _own_error(error)) is not None:
            raise own from error
        raise
    finally:
        if mine:
            ray.shutdown()


def _data_context() -> DataContext:
    """How Ray Data works here. In small object stores it deals in small blocks, of which more are
    on their way than there is room for: the rest is spilled. By its own settings the first task of
    a shuffle waits for a whole GiB, and steps wait for room that others hold."""
    context, rooms = DataContext.get_current().copy(), object_stores()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.shuffle_input_batch_bytes = min(context.shuffle_input_batch_bytes, min(rooms) // 5)
    if max(rooms) < SMALL:
        context.override_object_store_memory_limit_fraction = 2.0
        context.target_max_block_size = min(rooms) // 16
    return context


def _start(config: PipelinesConfig) -> None:
    joining = config.address or os.environ.get("RAY_ADDRESS")
    if not joining:
        for name, value in LOCAL_RAY.items():
            os.environ.setdefault(name, value)
    with warnings.catch_warnings(), _without_stderr():
        # Ray forks only to exec, which the store's library cannot know.
        warnings.filterwarnings("ignore", message="lancedb fork support")
        ray.init(
            address=config.address,
            num_cpus=None if joining else config.num_cpus or max(2, os.cpu_count() or 2),
            object_store_memory=None if joining else config.object_store_mib << 20,
            include_dashboard=None if joining else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def check_room(section: str, **needed: float) -> None:
    """Actors that find no room would be waited for without end, and without a word."""
    there = ray.cluster_resources()
    for name, amount in needed.items():
        if amount > there.get(name, 0):
            raise ConfigError(
                f"{section} need {amount:g} {name}s at least, but Ray has {there.get(name, 0):g}: "
                f"lower their {name.lower()}s or actors"
            )


def object_stores() -> list[int]:
    """The bytes that the object store of each node holds on which something can run."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    running = [node for node in nodes if node.get("CPU")] or nodes
    return [int(node["object_store_memory"]) for node in running]


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's C++ parts greet on standard error; what goes wrong still raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _own_error(error: BaseException | None) -> LightMemError | None:
    """The error of ours that a worker raised, if that is what stopped Ray."""
    while error is not None:
        if isinstance(error, LightMemError) and not isinstance(error, RayError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
