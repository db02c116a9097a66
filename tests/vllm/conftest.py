"""A real vLLM on the CPU, small enough for two cores: environment of its own, see lock.txt."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKER = Path(__file__).with_name("tiny_model.py")

# Read by vLLM, and by every process that a test starts, Ray's too.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_CPU_KVCACHE_SPACE="1",  # GiB
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",
)

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model of random weights, which knows the words of the samples."""
    folder = str(tmp_path_factory.mktemp("tiny"))
    prompts = sorted((ROOT / "lightmem_core" / "llm" / "prompts").glob("*.md"))
    words = [*map(str, prompts), str(ROOT / "pipelines" / "samples" / "chats.jsonl")]
    subprocess.run([sys.executable, str(MAKER), folder, *words], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def engine() -> dict[str, object]:
    """Arguments that make an engine start fast."""
    return {"enforce_eager": True, "max_num_seqs": 32, "seed": 0}
