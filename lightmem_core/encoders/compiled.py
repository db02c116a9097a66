"""Models that OpenVINO computes on the CPU in place of torch."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lightmem_core.encoders.loading import load_model

if TYPE_CHECKING:
    import torch

LOGITS, STATES = "logits", "last_hidden_state"
_COMPILING = Lock()
PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def check_runtime(runtime: str, device: str) -> None:
    """Raise ValueError for what is neither torch nor openvino, or if OpenVINO is not there, or is
    to compute elsewhere than on the CPU."""
    if runtime not in ("torch", "openvino"):
        raise ValueError(f"runtime must be torch or openvino, got {runtime!r}")
    if runtime == "torch":
        return
    if device != "cpu":
        raise ValueError(f"runtime openvino computes on the cpu: it does not take device {device}")
    if find_spec("openvino") is None:
        raise ValueError("runtime openvino needs OpenVINO: pip install 'lightmem-ray[openvino]'")


@cache
def load_compiled(model: str, dtype: str, result: str = LOGITS) -> Compiled:
    """The model for whoever asks for the same precision and result, which are the logits of its
    head or the states below it. Raise ValueError if it cannot be had."""
    source = load_model(model)
    return Compiled(source if result == LOGITS else source.base_model, dtype, result)


class Compiled:
    """Stands for a model of transformers, on the CPU: takes ids and mask, int64 (B, L), and gives
    one result of its forward pass. It is compiled at the first call, in seconds, and is in memory
    beside its source."""

    def __init__(self, source: Any, dtype: str, result: str):
        self.source, self.dtype, self.result = source, dtype, result
        self._compiled: Any = None
        self._rows = 0
        self._lock = Lock()

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        import torch

        with self._lock:
            rows = self.get_input_embeddings().num_embeddings
            if rows != self._rows:
                self._compiled = _compiled(self.source, self.dtype, self.result)
                self._rows = rows
        request = self._compiled.create_infer_request()  # its own: threads may call at once
        request.infer([input_ids.numpy(), attention_mask.numpy()], share_inputs=True)
        found = np.array(request.get_output_tensor(0).data)
        return SimpleNamespace(**{self.result: torch.from_numpy(found)})

    def get_input_embeddings(self) -> Any:
        return self.source.get_input_embeddings()

    def resize_token_embeddings(self, rows: int) -> None:
        self.source.resize_token_embeddings(rows)


def _compiled(source: Any, dtype: str, result: str) -> Any:
    import torch

    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report
    import openvino

    class Result(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = source

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.source(input_ids=ids, attention_mask=mask)[result]

    with _unwarned(), torch.inference_mode(False), torch.no_grad():
        converted = openvino.convert_model(Result().eval(), example_input=_example(2, 8))
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    _check(core.compile_model(converted, "CPU", exact), source, result)
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISION[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # every process would pin its threads to the same cores
    }
    return core.compile_model(converted, "CPU", settings)


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without warnings of what tracing makes a constant: `_check` sees to that. It also touches
    attributes that a model does not use, of which transformers warns."""
    logger = logging.getLogger("transformers")
    with _COMPILING, warnings.catch_warnings():  # both are the whole process's
        level = logger.level
        logger.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _example(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask with some padding: without any a batch would be traced without its mask."""
    import torch

    ids = torch.arange(rows * tokens).reshape(rows, tokens) % 7 + 3
    mask = torch.ones_like(ids)
    mask[-1, tokens // 2 :] = 0
    return ids, mask


def _check(compiled: Any, source: Any, result: str) -> None:
    """Raise ValueError if a batch of another shape than the traced one comes out different."""
    import torch

    ids, mask = _example(3, 21)
    with torch.inference_mode():
        wanted = source(input_ids=ids, attention_mask=mask)[result].numpy()
    found = compiled([ids.numpy(), mask.numpy()])[0]
    read = mask.numpy() == 1
    if not np.allclose(found[read], wanted[read], atol=1e-3):
        raise ValueError("OpenVINO cannot compute this model: set runtime to torch")
