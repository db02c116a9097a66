"""A cross-encoder: a query and a text read together, and judged by one number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from lightmem_core.encoders.batching import batch_budget, length_batches
from lightmem_core.encoders.loading import (
    check_dtype,
    config_with_head,
    load_model,
    load_tokenizer,
    whole_characters,
    window_of,
)

MAX_TOKENS = 512
WASTE = 0.2  # of a batch may be padding
WANTED = "name a model for sequence classification with one label, such as a reranker"


class CrossEncoder:
    """Any model for sequence classification with one label, by folder or hub name.

    A pair that is longer than the model reads is cut, the longer of the two first. Of each query
    the best `candidates` are read.
    """

    def __init__(
        self,
        model: str,
        *,
        candidates: int = 30,
        max_tokens: int = MAX_TOKENS,
        dtype: str = "float32",
        device: str = "cpu",
    ):
        if candidates < 1 or max_tokens < 8:
            raise ValueError("candidates must be at least 1 and max_tokens at least 8")
        check_dtype(dtype)
        config = config_with_head(model, ["ForSequenceClassification"], WANTED)
        if config.num_labels != 1:
            raise ValueError(f"{model} has {config.num_labels} labels, a reranker has one")
        self.name, self.candidates, self.dtype, self.device = model, candidates, dtype, device
        self.window = window_of(config, max_tokens)
        self._turn = Lock()  # a tokenizer that cuts can be used by one thread at a time

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.name)[1]

    @cached_property
    def model(self) -> Any:
        return load_model(self.name, self.dtype, self.device)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The logit of each pair: higher is better, and comparable across queries."""
        scores = np.zeros(len(pairs), np.float32)
        if not pairs:
            return scores
        read = self._read(pairs)
        lengths = [len(ids) for ids in read["input_ids"]]
        for rows in length_batches(lengths, batch_budget(self.device), WASTE):
            scores[rows] = self._logits({key: [read[key][row] for row in rows] for key in read})
        return scores

    def _read(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        queries, texts = (whole_characters(side) for side in zip(*pairs, strict=True))
        with self._turn:
            return dict(
                self.tokenizer(queries, texts, truncation="longest_first", max_length=self.window)
            )

    def _logits(self, batch: dict[str, Any]) -> np.ndarray:
        import torch

        padded = self.tokenizer.pad(batch, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**padded.to(self.device)).logits
        return logits[:, 0].float().cpu().numpy()
