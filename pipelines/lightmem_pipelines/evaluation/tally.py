"""What an evaluation has measured so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightmem_pipelines.evaluation.questions import Place, Question, Sample
from lightmem_pipelines.evaluation.rankings import (
    BEFORE_SLEEP,
    COSINE,
    ENTRIES,
    RANKINGS,
    Ranking,
)
from lightmem_pipelines.evaluation.recall import evidence_recall, means, session_recall
from lightmem_pipelines.evaluation.report import EvalReport, Figures


@dataclass
class Tally:
    """Counts, and in `scores` per ranking one row for each question in `asked`.

    `sessions` asks for LongMemEval's session metrics as well. `slept`: some user's entries were
    other ones before the sleep phase.
    """

    sessions: bool = False
    users: int = 0
    entries: int = 0
    messages: int = 0
    entry_tokens: int = 0
    message_tokens: int = 0
    evidence: int = 0
    covered: int = 0
    slept: bool = False
    asked: list[Question] = field(default_factory=list)
    scores: dict[str, list[dict[str, float]]] = field(
        default_factory=lambda: {name: [] for name in RANKINGS}
    )

    def add(self, sample: Sample, vectors: np.ndarray, rankings: Mapping[str, Ranking]) -> None:
        """Ask the questions of a user, whose vectors are given, of the user's rankings."""
        self._count(sample, rankings)
        for question, vector in zip(sample.questions, vectors, strict=True):
            self.asked.append(question)
            for name, ranking in rankings.items():
                self.scores[name].append(self._measure(ranking, question, vector))
            if BEFORE_SLEEP not in rankings:  # the sleep phase hid nothing of this user
                self.scores[BEFORE_SLEEP].append(self.scores[ENTRIES][-1])

    def _measure(self, by: Ranking, question: Question, vector: np.ndarray) -> dict[str, float]:
        ranked = by(question.text, vector)
        row = evidence_recall(ranked, question.gold)
        if self.sessions:
            row |= session_recall(ranked, question.gold_sessions)
        return row

    def _count(self, sample: Sample, rankings: Mapping[str, Ranking]) -> None:
        entries, messages = rankings[ENTRIES].items, rankings[COSINE].items
        evidence: frozenset[Place] = frozenset().union(*(q.gold for q in sample.questions))
        self.users += 1
        self.entries += len(entries)
        self.messages += len(messages)
        self.entry_tokens += sum(item.tokens for item in entries)
        self.message_tokens += sum(item.tokens for item in messages)
        self.evidence += len(evidence)
        self.covered += len(evidence & {place for item in entries for place in item.sources})
        self.slept |= BEFORE_SLEEP in rankings

    def report(self, dataset: str, path: str, skipped: Mapping[str, int]) -> EvalReport:
        categories = dict(Counter(question.category for question in self.asked).most_common())
        kept = [name for name in RANKINGS if self.slept or name != BEFORE_SLEEP]
        return EvalReport(
            dataset=dataset,
            path=path,
            users=self.users,
            questions=len(self.asked),
            skipped=dict(skipped),
            categories=categories,
            messages=self.messages,
            entries=self.entries,
            tokens_per_message=self.message_tokens / self.messages,
            tokens_per_entry=self.entry_tokens / max(self.entries, 1),
            covered=self.covered / self.evidence,
            rankings={name: self._figures(self.scores[name], categories) for name in kept},
        )

    def _figures(self, rows: Sequence[dict[str, float]], categories: Iterable[str]) -> Figures:
        by_category = {
            category: means(
                row
                for row, question in zip(rows, self.asked, strict=True)
                if question.category == category
            )
            for category in categories
        }
        return Figures(means(rows), by_category)
