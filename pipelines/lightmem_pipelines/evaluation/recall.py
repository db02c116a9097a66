"""Retrieval metrics without a judge: how much of the evidence is in the first part of a ranking."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightmem_pipelines.evaluation.questions import Place

DEPTHS = (5, 10, 20, 60)
BUDGETS = (1_000, 2_000, 4_000)  # tokens of context
SESSION_DEPTHS = (5, 10)

EVIDENCE_METRICS = (*(f"R@{k}" for k in DEPTHS), *(f"{b // 1000}k" for b in BUDGETS))
SESSION_METRICS = tuple(
    f"{name}@{k}" for name in ("recall_all", "ndcg_any") for k in SESSION_DEPTHS
)


@dataclass(frozen=True, slots=True)
class Item:
    """What a search can show: the messages it came from, and the tokens of its context line."""

    sources: tuple[Place, ...]
    tokens: int


def evidence_recall(ranked: Sequence[Item], gold: frozenset[Place]) -> dict[str, float]:
    """The share of `gold` among the first k items, and among those that fit in a budget."""
    ranks = first_ranks(ranked, gold)
    counts = (*DEPTHS, *(fitting(ranked, budget) for budget in BUDGETS))
    shares = (sum(rank < count for rank in ranks) / len(gold) for count in counts)
    return dict(zip(EVIDENCE_METRICS, shares, strict=True))


def first_ranks(ranked: Sequence[Item], gold: frozenset[Place]) -> list[int]:
    """The rank, from 0, at which each message of `gold` that is found is found first."""
    ranks: dict[Place, int] = {}
    for rank, item in enumerate(ranked):
        for place in item.sources:
            if place in gold:
                ranks.setdefault(place, rank)
    return list(ranks.values())


def fitting(ranked: Sequence[Item], budget: int) -> int:
    """How many items, taken in order until the next does not fit, hold at most `budget` tokens."""
    for count, item in enumerate(ranked):
        budget -= item.tokens
        if budget < 0:
            return count
    return len(ranked)


def session_recall(ranked: Sequence[Item], gold: frozenset[str]) -> dict[str, float]:
    """LongMemEval's session metrics, on the sessions in the order in which the items reach them."""
    reached = dict.fromkeys(session_id for item in ranked for session_id, _ in item.sources)
    relevant = [session_id in gold for session_id in reached]
    all_found = (float(sum(relevant[:k]) == len(gold)) for k in SESSION_DEPTHS)
    ndcg = (
        discounted_gain(relevant[:k]) / discounted_gain([True] * min(k, len(gold)))
        for k in SESSION_DEPTHS
    )
    return dict(zip(SESSION_METRICS, (*all_found, *ndcg), strict=True))


def discounted_gain(relevant: Sequence[bool]) -> float:
    """DCG as LongMemEval defines it: the first two ranks weigh the same."""
    return sum(found / max(math.log2(rank + 1), 1) for rank, found in enumerate(relevant))


def means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric. Every row has the same ones; no rows give none."""
    read = list(rows)
    return {name: sum(row[name] for row in read) / len(read) for name in (read[0] if read else ())}
