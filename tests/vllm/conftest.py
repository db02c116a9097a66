"""A real vLLM on the CPU, small enough for two cores: environment of its own, see lock.txt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightmem_core.config import Config, load_config

ROOT = Path(__file__).parents[2]
MAKER = Path(__file__).with_name("tiny_model.py")
FAKES = ROOT / "pipelines" / "configs" / "fakes.yaml"
SAMPLE = ROOT / "pipelines" / "samples" / "chats.jsonl"
SESSIONS = 12  # of the sample
POOLS = [
    {"steps": ["compress", "segment", "buffer"], "cpus": 0.5, "batch_size": 4},
    {"steps": ["extract"], "cpus": 1, "batch_size": 4, "batches": 4},
    {"steps": ["embed"], "cpus": 0.5, "batch_size": 64},
]

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:  # read by vLLM, and by every process that a test starts, Ray's too
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_CPU_KVCACHE_SPACE="1",  # GiB
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS="1",
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model of random weights, which knows the words of the samples."""
    folder = str(tmp_path_factory.mktemp("tiny"))
    prompts = sorted((ROOT / "lightmem_core" / "llm" / "prompts").glob("*.md"))
    words = [*map(str, prompts), str(SAMPLE)]
    subprocess.run([sys.executable, str(MAKER), folder, *words], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def engine() -> dict[str, Any]:
    """Arguments that make an engine start fast."""
    return {"enforce_eager": True, "max_num_seqs": 32, "seed": 0}


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first sessions of the sample."""
    path = tmp_path_factory.mktemp("source") / "chats.jsonl"
    with SAMPLE.open(encoding="utf-8") as lines:
        path.write_text("".join(islice(lines, SESSIONS)), encoding="utf-8")
    return str(path)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[dict[str, Any]], Config]:
    """The shipped fakes around a language model, with a store of the test's own."""

    def config(llm: dict[str, Any]) -> Config:
        tree = yaml.safe_load(FAKES.read_text(encoding="utf-8"))
        tree["memory"] |= {
            "llm": llm,
            "generator": {"use": "llm", "options": {"max_tokens": 1024}},
            "updater": {"use": "llm"},
            "buffer_tokens": 256,
            "queue": {"k": 3, "theta": -1},
        }
        tree["pipelines"] = {"pools": POOLS, "decide": {"cpus": 0.5, "entries_per_portion": 4}}
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(tree), encoding="utf-8")
        return load_config(path, uri=str(tmp_path / "store"))

    return config
