"""Texts read jointly, in one pass of a BERT-like encoder: what each attends to, and what to keep.

A group of texts becomes one input, [CLS] text text ... [SEP], so that the texts see each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lightmem_core.encoders.batching import length_batches
from lightmem_core.encoders.minilm import load_model, load_tokenizer, packaged_model
from lightmem_core.encoders.pooled_attention import Pooling, normalised, pooling_in, prepare

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

Group = Sequence[Sequence[int]]  # the token ids of texts that are read jointly


@dataclass(frozen=True)
class Marks:
    """The special tokens of a model's input. `between` (the joint) follows each text but the last;
    None joins the texts directly, as the reference does."""

    cls: int
    sep: int
    pad: int
    between: int | None = None

    def joined(self, group: Group) -> tuple[list[int], list[int]]:
        """The input of a group, and for each token the text it is of, -1 for none.

        An empty text is read as one [SEP]: every text has an attention.
        """
        ids, owners = [self.cls], [-1]
        for text, tokens in enumerate(group):
            if self.between is not None and text:
                ids.append(self.between)
                owners.append(-1)
            read = tokens or [self.sep]
            ids.extend(read)
            owners.extend([text] * len(read))
        return [*ids, self.sep], [*owners, -1]

    def length(self, tokens: Sequence[int]) -> int:
        """How many places a text takes in the input."""
        return max(len(tokens), 1) + (self.between is not None)


def attention(
    model: Any, marks: Marks, groups: Sequence[Group], layers: Sequence[int]
) -> list[np.ndarray]:
    """M of each group, float32 (texts, texts).

    M(k, j) for j < k is the share of the attention of text k to the texts before it that falls on
    text j, mean over heads and the chosen layers. `model` was given to `prepare`.
    """
    found: list[np.ndarray] = [np.zeros((0, 0), np.float32)] * len(groups)
    for rows, pooling, _ in _passes(model, marks, groups, layers, stop=True):
        for row, matrix in zip(rows, normalised(pooling.sums).cpu().numpy(), strict=True):
            found[row] = matrix[: len(groups[row]), : len(groups[row])]
    return found


def retention_and_attention(
    model: Any, marks: Marks, groups: Sequence[Group], layers: Sequence[int]
) -> list[tuple[list[np.ndarray], np.ndarray]]:
    """For each group, in one pass of a token-classification model of two labels: P(retain) of the
    tokens of each text, float32, and M as `attention` gives it.

    The texts of a group see each other: a text's probabilities are those of its group.
    """
    found: list[tuple[list[np.ndarray], np.ndarray]] = [([], np.zeros((0, 0)))] * len(groups)
    for rows, pooling, output in _passes(model, marks, groups, layers, stop=False):
        retained = output.logits.float().softmax(-1)[..., 1].cpu().numpy()
        matrices = normalised(pooling.sums).cpu().numpy()
        for row, values, matrix, owners in zip(
            rows, retained, matrices, pooling.owners.cpu().numpy(), strict=True
        ):
            group = groups[row]
            texts = [values[owners == k][: len(group[k])] for k in range(len(group))]
            found[row] = (texts, matrix[: len(group), : len(group)])
    return found


def _passes(
    model: Any, marks: Marks, groups: Sequence[Group], layers: Sequence[int], stop: bool
) -> Iterator[tuple[list[int], Pooling, Any]]:
    """Yield (rows, pooling, the model's output or None), batched by length; empty groups left
    out."""
    import torch

    read = [row for row, group in enumerate(groups) if group]
    joined = [marks.joined(groups[row]) for row in read]
    depth = model.config.num_hidden_layers
    chosen = sorted({layer % depth for layer in layers})
    for batch in length_batches([len(ids) for ids, _ in joined]):
        ids = _padded([joined[i][0] for i in batch], marks.pad).to(model.device)
        owners = _padded([joined[i][1] for i in batch], -2).to(model.device)
        pooling, output = Pooling(owners, chosen, stop), None
        with torch.inference_mode(), pooling_in(pooling):
            output = model(input_ids=ids, attention_mask=(owners != -2).long())
        yield [read[i] for i in batch], pooling, output


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


class JointReader:
    """Reads groups of texts with the first layers of an encoder, up to the last one of `layers`.

    `model` is a folder or hub name of a BERT-like encoder, the packaged MiniLM if none is given.
    Negative `layers` count from its end. Weights are read when they are first needed.
    """

    def __init__(
        self,
        model: str | None = None,
        layers: Sequence[int] = (0, 1),
        dtype: str = "float32",
        device: str = "cpu",
    ):
        if not layers:
            raise ValueError("layers must name at least one layer")
        self.folder = model or packaged_model()
        self.tokenizer = load_tokenizer(self.folder)
        self.marks = marks_of(self.tokenizer)
        self.layers, self.dtype, self.device = tuple(layers), dtype, device

    @cached_property
    def chosen(self) -> list[int]:
        depth = _config(self.folder).num_hidden_layers
        if any(not -depth <= layer < depth for layer in self.layers):
            raise ValueError(f"{self.folder} has {depth} layers, there is none of {self.layers}")
        return sorted({layer % depth for layer in self.layers})

    @cached_property
    def room(self) -> int:
        """How many tokens of texts fit the model, the marks around them left out."""
        config = _config(self.folder)
        numbered_from_padding = "roberta" in config.model_type or config.model_type == "camembert"
        offset = config.pad_token_id + 1 if numbered_from_padding else 0
        return config.max_position_embeddings - offset - 2

    @cached_property
    def model(self) -> Any:
        return prepare(load_model(self.folder, self.dtype, self.device, self.chosen[-1] + 1))

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encoded]

    def attention(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """M of each group, as `attention` gives it."""
        return attention(self.model, self.marks, groups, self.chosen)


def marks_of(tokenizer: Tokenizer) -> Marks:
    """The marks of BERT's or RoBERTa's kind. Raise ValueError if the tokenizer has neither."""
    for cls, sep, pad in (("[CLS]", "[SEP]", "[PAD]"), ("<s>", "</s>", "<pad>")):
        ids = [tokenizer.token_to_id(token) for token in (cls, sep, pad)]
        known = [token_id for token_id in ids if token_id is not None]
        if len(known) == len(ids):
            return Marks(*known)
    raise ValueError("the tokenizer has no [CLS] and [SEP]: a BERT-like encoder is needed")


@cache
def _config(folder: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)
