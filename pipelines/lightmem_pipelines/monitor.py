"""What a run is doing, for people: an actor that steps report to, and the line that shows it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from rich.console import Console
from rich.live import Live

from lightmem_core.errors import InputError, LightMemError
from lightmem_core.llm.usage import Usage
from lightmem_pipelines.budget import Budget

SECONDS_BETWEEN_LINES = 15  # where the display is no terminal


@dataclass
class Progress:
    """Counts so far. A retried task is counted twice here; the report counts in the store."""

    counts: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


class Monitor:
    """One actor a run. Raises InputError in the reader that goes over `max_bad_rows`.

    `usage` is what earlier attempts of the run have paid for; it goes on from there.
    """

    def __init__(
        self,
        max_bad_rows: int | None = None,
        budget: Budget | None = None,
        usage: Usage | None = None,
    ):
        self.max_bad_rows = max_bad_rows
        self.budget = budget or Budget()
        self.usage: Usage = usage or Usage()
        self.stop: LightMemError | None = None
        self.bad_rows: dict[str, int] = {}
        self.all_bad_rows = 0
        self.progress = Progress()

    def add(self, **counts: int) -> None:
        self.progress.counts.update(counts)

    def step(self, name: str, rows: int, seconds: float) -> None:
        self.progress.rows[name] += rows
        self.progress.seconds[name] += seconds  # pyright: ignore[reportArgumentType]

    def bad(self, path: str, rows: int) -> None:
        """Say how many bad rows a file has so far."""
        self.all_bad_rows += rows - self.bad_rows.get(path, 0)
        self.bad_rows[path] = rows
        if self.max_bad_rows is not None and self.all_bad_rows > self.max_bad_rows:
            raise InputError(
                f"{self.all_bad_rows} rows could not be read, more than --max-bad-rows "
                f"{self.max_bad_rows}; the last was in {path}: mend the input, or raise the cap"
            )

    def paid(self, call: dict[str, Any]) -> None:
        self.usage.add(call)
        self.progress.counts["calls"] += 1

    def spent(self) -> str:
        """What a budget that is spent says; empty while there is something left."""
        return self.budget.spent(self.usage)

    def stop_for(self, error: LightMemError) -> None:
        """End the run early, with the first such error: what is done is kept."""
        self.stop = self.stop or error

    def stopped(self) -> LightMemError | None:
        return self.stop

    def read(self) -> Progress:
        return self.progress


def start_monitor(
    max_bad_rows: int | None = None, budget: Budget | None = None, usage: Usage | None = None
) -> Any:
    return ray.remote(Monitor).options(num_cpus=0).remote(max_bad_rows, budget, usage)


def check_stopped(monitor: Any) -> None:
    """Raise what has stopped the run early, if anything has."""
    error: LightMemError | None = ray.get(monitor.stopped.remote())
    if error is not None:
        raise error


@contextmanager
def shown(monitor: Any, line: Any, enabled: bool = True) -> Iterator[None]:
    """Show `line(progress, seconds)` while the block runs, on one line that changes."""
    stop = threading.Event()
    console = Console(stderr=True)
    watcher = threading.Thread(target=_watch, args=(monitor, line, console, stop), daemon=True)
    if enabled:
        watcher.start()
    try:
        yield
    finally:
        stop.set()
        if enabled:
            watcher.join(timeout=5)


def _watch(monitor: Any, line: Any, console: Console, stop: threading.Event) -> None:
    started = time.monotonic()

    def text() -> str:
        return line(ray.get(monitor.read.remote()), time.monotonic() - started)

    if console.is_terminal:
        with Live(text(), console=console, transient=True, refresh_per_second=4) as live:
            while not stop.wait(0.5):
                live.update(text())
    else:
        while not stop.wait(SECONDS_BETWEEN_LINES):
            console.print(text(), highlight=False, soft_wrap=True)
