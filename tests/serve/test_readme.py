"""What the README says of the server can be copied and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
(SERVING,) = re.findall(r"^## Serving\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
PLACE = "127.0.0.1:8000"
BLOCKS = [
    (kind, code)
    for kind, code in re.findall(r"```(\w+)\n(.*?)```", SERVING, re.DOTALL)
    if PLACE in code
]
RUN = {"bash": ["bash", "-e", "-o", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def test_there_is_a_block_of_each_kind_of_client():
    marks = ("curl", "MemoryClient", "openai", "mcp")
    assert [next(m for m in marks if m in code) for _, code in BLOCKS] == list(marks)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_blocks_find_what_they_stored(server, llm_endpoint):
    llm_endpoint.plan(says="You said: {said}")
    place = server.url.removeprefix("http://")
    environment = os.environ | {"LIGHTMEM_KEY": server.key}
    for kind, code in BLOCKS:
        command = [*RUN[kind], code.replace(PLACE, place)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (code, done.stderr)
        assert "Porto" in done.stdout, (code, done.stdout)
    assert "I moved to Porto" in llm_endpoint.heard()[0][0]["content"]
