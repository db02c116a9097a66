"""One local Ray for all tests that need it, and small inputs written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from lightmem_core import Config, load_config
from lightmem_pipelines.cluster import ray_session

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
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


@pytest.fixture
def config(tmp_path: Path, cluster: None) -> Config:
    """The shipped fakes, with a store of the test's own."""
    return load_config(FAKES, uri=str(tmp_path / "store"))


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON lines; a string is written as it is."""

    def write(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)

    return write
