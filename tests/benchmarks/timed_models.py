"""The embedded models, adding up the CPU of each call of the model itself.

Tokens, padding, copies and pooling around a call do not count. What is pooled inside one, the
attention between texts, is added up by itself, too. One torch thread computes, so that the CPU of
the thread that calls is all that the model takes: what Ray's own threads do meanwhile is not
counted. PyTorch is imported where a model is loaded, as in a run that is not measured.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from lightmem_core.encoders import loading
from lightmem_core.encoders.minilm import MiniLMEmbedder
from lightmem_core.encoders.pooled_attention import Pooling
from lightmem_core.sensory.valley import ValleySegmenter

FOLDER = "LIGHTMEM_BENCH_FORWARD"  # where each process keeps its sum

_spent = {"forward": 0.0, "pooling": 0.0}  # pooling within forward


def _timed(call: Any, part: str) -> Any:
    """A call whose CPU seconds are added to what a part has spent."""

    def run(*args: Any, **options: Any) -> Any:
        started = time.thread_time()
        try:
            return call(*args, **options)
        finally:
            _spent[part] += time.thread_time() - started

    return run


def _kept(call: Any) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        finally:
            Path(os.environ[FOLDER], str(os.getpid())).write_text(json.dumps(_spent))

    return run


@cache
def _load_timed(model: str, dtype: str, device: str) -> Any:
    import torch

    torch.set_num_threads(1)
    loaded = _load(model, dtype, device)
    loaded.forward = _kept(_timed(loaded.forward, "forward"))
    return loaded


_load, loading._load = loading._load, _load_timed
Pooling.layer = _timed(Pooling.layer, "pooling")


class TimedEmbedder(MiniLMEmbedder):
    """Named in a configuration, it brings the timing into the process that loads the models."""


class TimedSegmenter(ValleySegmenter):
    """As TimedEmbedder."""
