"""One local Ray for all tests that need it, and small inputs written by hand."""

from __future__ import annotations

import json
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
