"""The two environments of the tests are made of the same versions."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = {"setuptools"}  # what vLLM needs to build its kernels, and nothing else names
ABSENT = {"torchvision", "torchaudio", "torchcodec", "vllm"}  # break vLLM on a CPU where present


def pins(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    found = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_of_vllm_has_the_versions_of_the_plain_install():
    lock, plain = pins("tests/vllm/lock.txt"), pins("constraints.txt")
    assert {name: plain.get(name) for name in lock if name not in OWN} == {
        name: version for name, version in lock.items() if name not in OWN
    }


def test_the_lock_of_vllm_lacks_what_breaks_it():
    assert not ABSENT & pins("tests/vllm/lock.txt").keys()
