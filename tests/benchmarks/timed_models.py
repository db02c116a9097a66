"""The embedded models, adding up the CPU they spend inside forward passes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightmem_core.encoders.minilm import Encoder, MiniLMEmbedder
from lightmem_core.sensory.valley import ValleySegmenter

FOLDER = "LIGHTMEM_BENCH_FORWARD"  # where each process keeps its sum

_spent = 0.0


def _timed(forward: Any) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        global _spent
        started = time.process_time()
        try:
            return forward(*args, **options)
        finally:
            _spent += time.process_time() - started
            Path(os.environ[FOLDER], str(os.getpid())).write_text(str(_spent))

    return run


class TimedEmbedder(MiniLMEmbedder):
    forward = _timed(Encoder.forward)


class TimedSegmenter(ValleySegmenter):
    def __init__(self) -> None:
        super().__init__()
        self.minilm.forward = _timed(self.minilm.forward)
        self.reader.attention = _timed(self.reader.attention)
