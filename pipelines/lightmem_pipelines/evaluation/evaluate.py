"""Rank the questions of a benchmark file by the store's entries and by its raw messages."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

import numpy as np

from lightmem_core import factory
from lightmem_core.config import Config
from lightmem_core.errors import InputError, StoreError
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.protocols import Embedder
from lightmem_pipelines.evaluation.questions import QuestionFile, Sample
from lightmem_pipelines.evaluation.rankings import entry_rankings, message_rankings, message_text
from lightmem_pipelines.evaluation.report import EvalReport
from lightmem_pipelines.evaluation.tally import Tally

MESSAGES_PER_CALL = 20_000  # embedded together: equal lengths meet, and memory stays flat
NAMED_USERS = 5


def evaluate(
    config: Config, dataset: str, path: str, tell: Callable[[str], None] | None = None
) -> EvalReport:
    """Measure how much of the evidence each ranking finds; `tell` is told how far it is.

    Raise InputError if the file is none of `dataset`, StoreError if its users are not stored.
    """
    started = time.perf_counter()
    samples = QuestionFile(dataset, path, ZoneInfo(config.pipelines.input.timezone))
    embedder, tokenizer = factory.embedder(config.memory), factory.tokenizer(config.memory)
    store = MemoryStore.open(config.memory.store, VectorModel.of(embedder))
    asked, skipped = _survey(samples)
    _require(store, asked, path)
    tally = Tally(sessions=dataset == "longmemeval")
    for batch in _batches(samples):
        for user in _embedded(batch, embedder):
            sample = user.sample
            entries = store.shard_for(sample.user_id).entries_of([sample.user_id], tombstones=True)
            rankings = entry_rankings(entries, tokenizer)
            rankings |= message_rankings(sample.messages, user.messages, tokenizer)
            tally.add(sample, user.questions, rankings)
        if tell:
            tell(f"{tally.users:,} of {len(asked):,} users · {len(tally.asked):,} questions")
    report = tally.report(dataset, path, skipped)
    return replace(report, seconds=round(time.perf_counter() - started, 3))


def _survey(samples: Iterable[Sample]) -> tuple[list[str], Counter[str]]:
    """The users that are asked about, and the questions skipped by reason; no model is needed."""
    asked: list[str] = []
    skipped: Counter[str] = Counter()
    for sample in samples:
        skipped.update(sample.skipped)
        if sample.questions:
            asked.append(sample.user_id)
    if not asked:
        raise InputError("the file holds no question whose evidence is known: nothing to measure")
    return asked, skipped


def _require(store: MemoryStore, users: Sequence[str], path: str) -> None:
    missing = [user for user in users if not store.shard_for(user).known([user])]
    if missing:
        more = len(missing) - NAMED_USERS
        names = ", ".join(missing[:NAMED_USERS]) + (f" and {more:,} more" if more > 0 else "")
        raise StoreError(
            f"{len(missing):,} of the {len(users):,} users of {path} are not in the store "
            f"({names}): run `lightmem backfill {path}` first"
        )


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """The samples that ask anything, in batches of about MESSAGES_PER_CALL messages."""
    held: list[Sample] = []
    for sample in samples:
        if sample.questions:
            held.append(sample)
        if sum(len(s.messages) for s in held) >= MESSAGES_PER_CALL:
            yield held
            held = []
    if held:
        yield held


@dataclass(frozen=True, slots=True)
class Embedded:
    """A sample with the vectors of its messages and of its questions."""

    sample: Sample
    messages: np.ndarray
    questions: np.ndarray


def _embedded(batch: Sequence[Sample], embedder: Embedder) -> Iterator[Embedded]:
    texts = [[message_text(m) for m in sample.messages] for sample in batch]
    texts += [[q.text for q in sample.questions] for sample in batch]
    vectors = encode(embedder, [text for part in texts for text in part])
    parts = np.split(vectors, np.cumsum([len(part) for part in texts])[:-1])
    messages, questions = parts[: len(batch)], parts[len(batch) :]
    yield from map(Embedded, batch, messages, questions)
