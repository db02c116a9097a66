"""The embedded models, adding up the CPU of each call of the model itself.

Tokens, padding, copies and pooling around a call do not count, nor does the pooling of attention
between texts, which runs inside one. One torch thread computes, so that the CPU of the thread that
calls is all that the model takes: what Ray's own threads do meanwhile is not counted.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lightmem_core.encoders import loading
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.encoders.pooled_attention import Pooling
from lightmem_core.sensory.valley import ValleySegmenter

FOLDER = "LIGHTMEM_BENCH_FORWARD"  # where each process keeps its sum

_spent = 0.0


def _timed(call: Any, sign: int) -> Any:
    """A call whose CPU seconds are added to what is spent, or taken off it."""

    def run(*args: Any, **options: Any) -> Any:
        global _spent
        started = time.thread_time()
        try:
            return call(*args, **options)
        finally:
            _spent += sign * (time.thread_time() - started)

    return run


def _kept(call: Any) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        finally:
            Path(os.environ[FOLDER], str(os.getpid())).write_text(str(_spent))

    return run


@cache
def _load_timed(model: str, dtype: str, device: str) -> Any:
    loaded = _load(model, dtype, device)
    loaded.forward = _kept(_timed(loaded.forward, 1))
    return loaded


torch.set_num_threads(1)
_load, loading._load = loading._load, _load_timed
Pooling.layer = _timed(Pooling.layer, -1)


class TimedEmbedder(MiniLMEmbedder):
    """Named in a configuration, it brings the timing into the process that loads the models."""


class TimedSegmenter(ValleySegmenter):
    """As TimedEmbedder."""
