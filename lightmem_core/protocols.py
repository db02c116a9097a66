"""What a plugged-in part must do. Each method takes a batch and answers in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from lightmem_core.types import Buffer, Decision, Entry, Fact, Failure, Message

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out")


class Stage(Protocol[In, Out]):
    """A batch of rows in, a batch of rows out. No hidden state, so any batch may be retried."""

    def __call__(self, rows: Sequence[In], /) -> list[Out]: ...


class Tokenizer(Protocol):
    """Token counts are real: th, r and every report count with the same tokenizer."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens left out."""
        ...


class Compressor(Protocol):
    def compress(self, texts: Sequence[str]) -> list[str]:
        """Return each text with its uninformative words dropped, the rest in order, never empty."""
        ...


class Segmenter(Protocol):
    def cut(self, sessions: Sequence[Sequence[Message]]) -> list[list[int]]:
        """For each session: the indices, ascending and excluding 0, at which a new topic starts."""
        ...


class Generator(Protocol):
    """Writes memories. `name` is stored with every entry. A class that gives the same facts for the
    same buffer each time may say so with `deterministic = True`: several runs may then be at work
    at once."""

    name: str

    def generate(self, buffers: Sequence[Buffer]) -> Sequence[Sequence[Fact | Failure] | str]:
        """For each buffer its facts (none is an answer), or a string that says why it failed. One
        that failed in part has failures beside its facts."""
        ...


class Embedder(Protocol):
    """`name` and `dim` are kept in the store, which refuses vectors of any other model."""

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32, of shape (len(texts), dim)."""
        ...


class Reranker(Protocol):
    """Reads a query and a text together. Of each query the best `candidates` are given to it."""

    candidates: int

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """How well each text answers its query, higher is better: float32, shape (len(pairs),)."""
        ...


@dataclass(frozen=True, slots=True)
class UpdateQueue:
    """An entry and the later ones it is judged by, with their similarity, most similar first."""

    entry: Entry
    later: tuple[tuple[Entry, float], ...]


class Updater(Protocol):
    def decide(self, queues: Sequence[UpdateQueue]) -> Sequence[Decision | str | None]:
        """For each queue what becomes of its entry (None: nothing), or a string that says why that
        could not be decided."""
        ...


class Filter(Protocol):
    """Which entries of a user are wanted."""

    def matches(self, entry: Entry) -> bool: ...
