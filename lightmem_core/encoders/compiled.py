"""A token classifier that OpenVINO computes on the CPU in place of torch."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib.util import find_spec
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lightmem_core.encoders.loading import load_model

if TYPE_CHECKING:
    import torch

PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def check_openvino(device: str) -> None:
    """Raise ValueError if OpenVINO is not there, or is to compute elsewhere than on the CPU."""
    if device != "cpu":
        raise ValueError(f"runtime openvino computes on the cpu: it does not take device {device}")
    if find_spec("openvino") is None:
        raise ValueError("runtime openvino needs OpenVINO: pip install 'lightmem-ray[openvino]'")


@cache
def load_compiled(model: str, dtype: str) -> Compiled:
    """The model for whoever asks for the same precision. Raise ValueError if it cannot be had."""
    return Compiled(load_model(model), dtype)


class Compiled:
    """Stands for a model with a head of transformers, on the CPU: takes ids and mask, int64 (B, L),
    and gives the logits. It is compiled at the first call, in seconds, and is in memory beside its
    source."""

    def __init__(self, source: Any, dtype: str):
        self.source, self.dtype = source, dtype
        self._compiled: Any = None
        self._rows = 0
        self._lock = Lock()

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        import torch

        with self._lock:
            rows = self.get_input_embeddings().num_embeddings
            if rows != self._rows:
                self._compiled, self._rows = _compiled(self.source, self.dtype), rows
        request = self._compiled.create_infer_request()  # its own: threads may call at once
        request.infer([input_ids.numpy(), attention_mask.numpy()], share_inputs=True)
        logits = np.array(request.get_output_tensor(0).data)
        return SimpleNamespace(logits=torch.from_numpy(logits))

    def get_input_embeddings(self) -> Any:
        return self.source.get_input_embeddings()

    def resize_token_embeddings(self, rows: int) -> None:
        self.source.resize_token_embeddings(rows)


def _compiled(source: Any, dtype: str) -> Any:
    import torch

    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report
    import openvino

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = source

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.source(input_ids=ids, attention_mask=mask).logits

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of what tracing makes a constant: _check sees to that
        converted = openvino.convert_model(Logits().eval(), example_input=_example(2, 8))
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    _check(core.compile_model(converted, "CPU", exact), source)
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISION[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # every process would pin its threads to the same cores
    }
    return core.compile_model(converted, "CPU", settings)


def _example(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask with some padding: without any a batch would be traced without its mask."""
    import torch

    ids = torch.arange(rows * tokens).reshape(rows, tokens) % 7 + 3
    mask = torch.ones_like(ids)
    mask[-1, tokens // 2 :] = 0
    return ids, mask


def _check(compiled: Any, source: Any) -> None:
    """Raise ValueError if a batch of another shape than the traced one comes out different."""
    import torch

    ids, mask = _example(3, 21)
    with torch.inference_mode():
        wanted = source(input_ids=ids, attention_mask=mask).logits.numpy()
    found = compiled([ids.numpy(), mask.numpy()])[0]
    read = mask.numpy() == 1
    if not np.allclose(found[read], wanted[read], atol=1e-3):
        raise ValueError("OpenVINO cannot compute this model: set runtime to torch")
