"""What is compared: the store's entries, ranked as a search ranks them, and raw messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightmem_core.long_term.ranking import UserIndex, standard
from lightmem_core.long_term.render import day, entry_line
from lightmem_core.protocols import Tokenizer
from lightmem_core.types import Entry, Message, Source
from lightmem_pipelines.evaluation.bm25 import BM25
from lightmem_pipelines.evaluation.recall import Item

ENTRIES = "entries"
BEFORE_SLEEP = "entries, before sleep"
COSINE = "messages, cosine"
WORDS = "messages, BM25"
FUSED = "messages, RRF of both"
SUMMED = "messages, z-scores + window"
RANKINGS = (ENTRIES, BEFORE_SLEEP, COSINE, WORDS, FUSED, SUMMED)

RRF_OFFSET = 60
WINDOW_WEIGHT = 0.6

Score = Callable[[str, np.ndarray], np.ndarray]  # a query and its vector -> a score per item


@dataclass(frozen=True, slots=True)
class Ranking:
    """What can be shown for one user, and how it is scored; higher is better."""

    items: Sequence[Item]
    score: Score

    def __call__(self, query: str, vector: np.ndarray) -> list[Item]:
        """All items, best first."""
        order = np.argsort(-self.score(query, vector), kind="stable")
        return [self.items[i] for i in order]


def message_line(message: Message) -> str:
    """A raw message as it is shown, in the form of an entry's line."""
    return f"{day(message.said_at)} {message.speaker}: {message.content}"


def message_text(message: Message) -> str:
    """What is embedded of a raw message: of the forms tried, the one in which MiniLM finds most."""
    return f"On {day(message.said_at)}, {message.speaker} said: {message.content}"


def entry_rankings(entries: Sequence[Entry], tokenizer: Tokenizer) -> dict[str, Ranking]:
    """Entries as they are, and, where the sleep phase hid any, as they were before it.

    `entries` are all of one user's, tombstones too.
    """
    rankings = {ENTRIES: _ranking(entries, _all_sources, tokenizer)}
    if not all(entry.active for entry in entries):
        before = [replace(entry, superseded_by="") for entry in entries]
        rankings[BEFORE_SLEEP] = _ranking(before, _own_sources, tokenizer)
    return rankings


def _ranking(
    entries: Sequence[Entry], sources: Callable[[Entry], Iterable[Source]], tokenizer: Tokenizer
) -> Ranking:
    index = UserIndex(entries)
    shown = [place for place, entry in enumerate(index.entries) if entry.active]
    found = [index.entries[place] for place in shown]
    tokens = tokenizer.count([entry_line(entry) for entry in found])
    items = [
        Item(tuple((s.session_id, s.position) for s in sources(entry)), count)
        for entry, count in zip(found, tokens, strict=True)
    ]
    return Ranking(items, lambda query, vector: index.rank(query, vector).total[shown])


def _all_sources(entry: Entry) -> Iterable[Source]:
    return (*entry.sources, *entry.absorbed)


def _own_sources(entry: Entry) -> Iterable[Source]:
    return entry.sources


def message_rankings(
    messages: Sequence[Message], vectors: np.ndarray, tokenizer: Tokenizer
) -> dict[str, Ranking]:
    """Raw messages, in their order, by the rankings of `vectors` (of their texts) and of words."""
    lines = [message_line(message) for message in messages]
    items = [
        Item(((message.session_id, message.position),), count)
        for message, count in zip(messages, tokenizer.count(lines), strict=True)
    ]
    bm25 = BM25(lines)

    def cosine(query: str, vector: np.ndarray) -> np.ndarray:
        return vectors @ vector

    def by_words(query: str, vector: np.ndarray) -> np.ndarray:
        return bm25(query)

    def fused(query: str, vector: np.ndarray) -> np.ndarray:
        return reciprocal(cosine(query, vector)) + reciprocal(bm25(query))

    def summed(query: str, vector: np.ndarray) -> np.ndarray:
        return with_window(standard(cosine(query, vector)) + standard(bm25(query)))

    scores: dict[str, Score] = {COSINE: cosine, WORDS: by_words, FUSED: fused, SUMMED: summed}
    return {name: Ranking(items, score) for name, score in scores.items()}


def reciprocal(scores: np.ndarray) -> np.ndarray:
    """1 / (60 + rank), the ranks from 1; ties keep their order."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return 1 / (RRF_OFFSET + ranks)


def with_window(scores: np.ndarray) -> np.ndarray:
    """Add 0.6 of the mean of each score and its two neighbours; the ends count twice."""
    padded = np.pad(scores, 1, mode="edge")
    return scores + WINDOW_WEIGHT * (padded[:-2] + padded[1:-1] + padded[2:]) / 3
