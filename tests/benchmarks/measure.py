"""What a process and all that it starts cost: CPU seconds and peak memory, by sampling."""

from __future__ import annotations

import platform
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import psutil

SAMPLE_SECONDS = 0.25
PACKAGES = ("ray", "lancedb", "pyarrow", "numpy", "torch", "transformers")


@dataclass
class Cost:
    """`cpu` and `wall` in seconds; `peak_rss` in bytes, pages shared by processes counted in each
    of them; `peak_pss` with every shared page counted once, sampled more rarely."""

    cpu: float = 0.0
    wall: float = 0.0
    peak_rss: int = 0
    peak_pss: int = 0
    output: str = ""
    seen: dict[tuple[int, float], float] = field(default_factory=dict)


def run_measured(command: Sequence[str]) -> Cost:
    """Run a command to its end. Raise CalledProcessError if it fails."""
    cost, started = Cost(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, cost, done))
    watcher.start()
    cost.output, _ = process.communicate()
    done.set()
    watcher.join()
    cost.wall, cost.cpu = time.monotonic() - started, sum(cost.seen.values())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, cost.output)
    return cost


def _watch(pid: int, cost: Cost, done: threading.Event) -> None:
    samples = 0
    while not done.wait(SAMPLE_SECONDS):
        processes = _tree(pid)
        rss = sum(_sample(process, cost) for process in processes)
        cost.peak_rss = max(cost.peak_rss, rss)
        if samples % 20 == 0:
            cost.peak_pss = max(cost.peak_pss, sum(map(_pss, processes)))
        samples += 1


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _sample(process: psutil.Process, cost: Cost) -> int:
    try:
        times = process.cpu_times()
        cost.seen[process.pid, process.create_time()] = times.user + times.system
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def environment() -> str:
    """The hardware and versions that a number belongs to."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{_processor()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {packages}; {time.strftime('%Y-%m-%d')}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
