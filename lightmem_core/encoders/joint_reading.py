"""Texts read jointly, in one pass of a BERT-like encoder: what each attends to, and what to keep.

A group of texts becomes one input, [CLS] text text ... [SEP], so that the texts see each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lightmem_core.encoders import loading
from lightmem_core.encoders.batching import batch_budget, length_batches
from lightmem_core.encoders.forward import padded, sent
from lightmem_core.encoders.minilm import packaged_model
from lightmem_core.encoders.pooled_attention import Pooling, normalised, pooling_in, prepare

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

# What rounding can move in float32 is below this; a decision as close as that is made again.
MARGIN = 1e-5
PADDING = -2  # as the owner of a token
LONGEST = 8192  # tokens that are read jointly, whatever the model allows
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
    for done in list(_passes(model, marks, groups, layers, stop=True)):
        for row, matrix in zip(done.rows, done.shares.cpu().numpy(), strict=True):
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
    for done in list(_passes(model, marks, groups, layers, stop=False)):
        retained, matrices = done.retained.cpu().numpy(), done.shares.cpu().numpy()
        for row, values, matrix, owners in zip(
            done.rows, retained, matrices, done.owners, strict=True
        ):
            group = groups[row]
            texts = [values[owners == k][: len(group[k])] for k in range(len(group))]
            found[row] = texts, matrix[: len(group), : len(group)]
    return found


@dataclass(frozen=True)
class _Pass:
    """A batch of groups, `rows`, under way on the device: its M, (B, S, S), and P(retain), (B, L),
    of the tokens if the whole model is run. `owners`, (B, L), is the text of each token."""

    rows: list[int]
    owners: np.ndarray
    shares: torch.Tensor
    retained: Any


def _passes(
    model: Any, marks: Marks, groups: Sequence[Group], layers: Sequence[int], stop: bool
) -> Iterator[_Pass]:
    """Launch batches of similar length; empty groups are left out. Who takes them all before any
    is copied back lets a device compute on."""
    import torch

    read = [row for row, group in enumerate(groups) if group]
    joined = [marks.joined(groups[row]) for row in read]
    depth, device = model.config.num_hidden_layers, str(model.device)
    chosen = sorted({layer % depth for layer in layers})
    for batch in length_batches([len(ids) for ids, _ in joined], batch_budget(device)):
        owners = padded([joined[i][1] for i in batch], PADDING)
        ids = sent(padded([joined[i][0] for i in batch], marks.pad), device)
        mask = sent((owners != PADDING).astype(np.int64), device)
        texts = max(len(groups[read[i]]) for i in batch)
        pooling, retained = Pooling(sent(owners, device), texts, chosen, stop), None
        with torch.inference_mode():
            with pooling_in(pooling):
                logits = model(input_ids=ids, attention_mask=mask)[0]
                retained = logits.float().softmax(-1)[..., 1]
            shares = normalised(pooling.sums)
        yield _Pass([read[i] for i in batch], owners, shares, retained)


class JointReader:
    """Reads groups of texts with an encoder, as far as the last of the chosen layers.

    `model` is a folder or hub name of a BERT-like encoder, with a head or without; the packaged
    MiniLM if none is given. Negative `layers` count from its end. What is read here and elsewhere
    is in memory once. Weights are loaded when they are first needed.
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
        loading.check_dtype(dtype)
        self.name, self.layers = model, tuple(layers)
        self.dtype, self.device = dtype, device

    def check(self) -> None:
        """Raise ValueError if there is no such model, or if it has not these layers."""
        if not self.chosen or self.room < 1:
            raise ValueError(f"{self.folder} cannot read texts jointly")

    @cached_property
    def folder(self) -> str:
        return self.name or packaged_model()

    @cached_property
    def depth(self) -> int:
        return int(loading.config_value(self.folder, "num_hidden_layers"))

    @cached_property
    def chosen(self) -> list[int]:
        depth = self.depth
        if any(not -depth <= layer < depth for layer in self.layers):
            raise ValueError(f"{self.folder} has {depth} layers, layers names {self.layers}")
        return sorted({layer % depth for layer in self.layers})

    @cached_property
    def room(self) -> int:
        """How many tokens of texts fit the model, the marks around them left out."""
        return loading.window_of(loading.model_config(self.folder), LONGEST) - 2

    @cached_property
    def model(self) -> Any:
        return prepare(loading.load_model(self.folder, self.dtype, self.device))

    @cached_property
    def tokenizer(self) -> tuple[Tokenizer, Any]:
        return loading.load_tokenizer(self.folder)

    @cached_property
    def marks(self) -> Marks:
        _, named = self.tokenizer
        cls, sep = (loading.special_id(named, *r) for r in (("cls", "bos"), ("sep", "eos")))
        pad = loading.special_id(named, "pad", "eos")
        if cls is None or sep is None or pad is None:
            raise ValueError(f"{self.folder} has no [CLS] and [SEP]: it is no BERT-like encoder")
        return Marks(cls, sep, pad)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return loading.token_ids(self.tokenizer[0], texts)

    def attention(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """M of each group, as the function of this name gives it."""
        return attention(self.model, self.marks, groups, self.chosen)
