"""One local Ray for all tests that need it, and small inputs written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from click.testing import CliRunner

from lightmem_core import Config, load_config
from lightmem_core.long_term.store import MemoryStore
from lightmem_pipelines.cli import main
from lightmem_pipelines.cluster import ray_session

HERE = Path(__file__).parent
FAKES = HERE.parents[1] / "pipelines" / "configs" / "fakes.yaml"
OF_A_RUN = {"run_id", "stored_at", "changed_by", "changed_at", "replaced_by", "replaced_at"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """With this folder's parts to be had by import path, here and in every process of Ray, whose
    idle workers wait for the next test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_num_workers_soft_limit", "12")
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "60000")
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
        with ray_session(load_config(FAKES).pipelines.model_copy(update={"num_cpus": 2})):
            yield
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def launch(cluster: None) -> Callable[..., subprocess.Popen[str]]:
    """Start `lightmem` with some arguments as a process, on the tests' Ray or a node of its own."""

    def start(*words: object, node: bool = False) -> subprocess.Popen[str]:
        code = "from lightmem_pipelines.cli import main; main()"
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        if not node:
            env["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-c", code, *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)

    return start


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Run `lightmem` to its end as a person would, but in this process. `answers` are typed in."""

    def run(*words: str, answers: str = "") -> Told:
        monkeypatch.setattr("sys.argv", ["lightmem", *words])
        with CliRunner().isolation(answers) as (out, err, _):
            with pytest.raises(SystemExit) as ended:
                main()
            code = int(ended.value.code or 0)
            return Told(code, out.getvalue().decode(), err.getvalue().decode())

    return run


@pytest.fixture(scope="session")
def processes(cluster: None) -> Callable[[str], list[psutil.Process]]:
    """The processes of the tests' Ray whose title begins so."""

    def titled(name: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(name):
                    found.append(process)
        return found

    return titled


@pytest.fixture
def config(tmp_path: Path, cluster: None) -> Config:
    """The shipped fakes, with a store of the test's own."""
    return load_config(FAKES, uri=str(tmp_path / "store"))


@pytest.fixture(scope="session")
def stored_rows() -> Callable[..., dict[str, dict[str, Any]]]:
    """All rows of a store, each there once, by table and id, but for which run wrote them and when.
    What else a test cannot compare is left out too."""

    def read(config: Config, apart: Collection[str] = ()) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for shard in MemoryStore.open(config.memory.store).shards:
            for name in ("entries", "messages", "versions"):
                for row in getattr(shard, name).to_arrow().to_pylist():
                    key = f"{name} {row.get('key') or row['id']}"
                    assert key not in found, "a row was written twice"
                    kept = row.keys() - OF_A_RUN - set(apart)
                    found[key] = {column: row[column] for column in kept}
        return found

    return read


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON lines; a string is written as it is."""

    def write(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)

    return write
