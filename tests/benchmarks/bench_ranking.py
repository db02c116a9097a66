"""The ranking's numbers chosen on all conversations but one, and tried on the one left out.

    make bench-ranking LOCOMO=path/to/locomo10.json

For each conversation, the settings that find most of the evidence of the others within 1,000, 2,000
and 4,000 tokens rank its own. The row "held out" is of these rankings together.

LoCoMo is not shipped (CC BY-NC 4.0).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from functools import cache

import numpy as np
from measure import environment

from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.long_term.ranking import SHIPPED, Settings, UserIndex
from lightmem_core.long_term.render import entry_line
from lightmem_core.types import Entry, History
from lightmem_pipelines.evaluation.questions import QuestionFile, Sample
from lightmem_pipelines.evaluation.rankings import message_rankings, message_text
from lightmem_pipelines.evaluation.recall import EVIDENCE_METRICS, Item, evidence_recall, means

VALUES = {
    "decay": (0.3, 0.5, 0.7),
    "full_coverage": (0.1, 0.2, 0.4),
    "length_weight": (0.1, 0.3, 0.6),
    "speaker": (0.5, 1.0, 2.0),
}
ROUNDS = 2
BUDGETS = ("1k", "2k", "4k")
Rows = list[dict[str, float]]  # of metrics, one for each question
MEMORY = MemoryConfig()


@dataclass(frozen=True)
class Conversation:
    """A sample with its entries, as a backfill makes them, and the vectors of its questions."""

    sample: Sample
    entries: list[Entry]
    questions: np.ndarray

    def ranked_by(self, settings: Settings) -> Rows:
        index = UserIndex(self.entries, settings=settings)
        tokens = factory.tokenizer(MEMORY).count([entry_line(e) for e in index.entries])
        items = [
            Item(tuple((s.session_id, s.position) for s in entry.sources), count)
            for entry, count in zip(index.entries, tokens, strict=True)
        ]
        rows = []
        for question, vector in zip(self.sample.questions, self.questions, strict=True):
            order = np.argsort(-index.rank(question.text, vector).total, kind="stable")
            rows.append(evidence_recall([items[i] for i in order], question.gold))
        return rows


def conversations(path: str) -> Iterator[Conversation]:
    embedder = factory.embedder(MEMORY)
    stages = factory.stages(MEMORY)
    for sample in QuestionFile("locomo", path, UTC):
        rows = [History(sample.user_id, sample.messages)]
        for stage in stages:
            rows = stage(rows)  # pyright: ignore[reportArgumentType]
        entries = [entry for row in rows for entry in row.entries]  # pyright: ignore[reportAttributeAccessIssue]
        yield Conversation(sample, entries, embedder.encode([q.text for q in sample.questions]))


def raw(read: Sequence[Conversation]) -> dict[str, Rows]:
    """The rankings of raw messages, as `lightmem eval` has them."""
    embedder, tokenizer = factory.embedder(MEMORY), factory.tokenizer(MEMORY)
    found: dict[str, Rows] = {}
    for conversation in read:
        sample = conversation.sample
        vectors = embedder.encode([message_text(m) for m in sample.messages])
        for name, ranking in message_rankings(sample.messages, vectors, tokenizer).items():
            found.setdefault(name, []).extend(
                evidence_recall(ranking(question.text, vector), question.gold)
                for question, vector in zip(sample.questions, conversation.questions, strict=True)
            )
    return found


def chosen(found: Callable[[Settings], list[Rows]], left_out: int) -> Settings:
    """The best of VALUES for all conversations but one, chosen number by number from the first of
    each on; `found` gives the rows of each conversation."""

    def worth(settings: Settings) -> float:
        parts = found(settings)
        rows = [row for n, part in enumerate(parts) if n != left_out for row in part]
        return sum(means(rows)[budget] for budget in BUDGETS)

    best = Settings(**{name: values[0] for name, values in VALUES.items()})
    for name, values in [*VALUES.items()] * ROUNDS:
        best = max((replace(best, **{name: value}) for value in values), key=worth)
    return best


def line(name: str, rows: Rows) -> str:
    mean = means(rows)
    return f"{name:28}" + "".join(f"{100 * mean[m]:7.1f}" for m in EVIDENCE_METRICS)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: make bench-ranking LOCOMO=path/to/locomo10.json")
    read = list(conversations(sys.argv[1]))

    @cache
    def found(settings: Settings) -> list[Rows]:
        return [conversation.ranked_by(settings) for conversation in read]

    picked = [chosen(found, n) for n in range(len(read))]
    held_out = [row for n, settings in enumerate(picked) for row in found(settings)[n]]
    print(environment())
    print(f"{len(held_out):,} questions, {len(read)} conversations")
    print(" " * 28 + "".join(f"{m:>7}" for m in EVIDENCE_METRICS))
    print(line("entries, held out", held_out))
    print(line("entries, as shipped", [row for part in found(SHIPPED) for row in part]))
    for name, rows in raw(read).items():
        print(line(name, rows))
    for settings, times in Counter(picked).most_common():
        print(f"chosen {times} times: {settings}")


if __name__ == "__main__":
    main()
