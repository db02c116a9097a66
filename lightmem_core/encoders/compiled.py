"""A token classifier that OpenVINO computes on the CPU in place of torch."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib.util import find_spec
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
    and gives the logits. It is compiled at the first call, in a few seconds."""

    def __init__(self, source: Any, dtype: str):
        self.source, self.dtype = source, dtype
        self._compiled: Any = None
        self._rows = 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        import torch

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

    ids = torch.ones((2, 8), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # a batch without padding would be traced without its mask
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of what is the same for every batch
        converted = openvino.convert_model(Logits().eval(), example_input=(ids, mask))
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISION[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino.Core().compile_model(converted, "CPU", settings)
