"""A cross-encoder that judges the best entries beside the query."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightmem_core import factory
from lightmem_core.config import Component, MemoryConfig
from lightmem_core.encoders.cross_encoder import CrossEncoder
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import ConfigError
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.retrieve import Query, Retrieval
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted

EMBEDDER = HashEmbedder(16)
PAIRS = [
    ("Where does Caroline live now?", "She moved to Lisbon on 7 May 2023."),
    ("Where does Caroline live now?", "it was 12 degrees"),
    ("the price", "The price was 4.50 [SEP] wasn't it? " * 40),
    ("river " * 300, "I went to the river"),
    ("", ""),
]


class Longest:
    """Judges a text by its length."""

    candidates = 3

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.asked.append(len(pairs))
        return np.array([len(text) for _, text in pairs], np.float32)


@pytest.fixture(scope="module")
def reranker(tiny_model: Callable[[str], str]) -> CrossEncoder:
    return CrossEncoder(tiny_model("reranker"), max_tokens=64)


@pytest.fixture
def retrieval(store: MemoryStore, entry: Callable[..., Entry]) -> Retrieval:
    texts = ["beagle", "beagle rain", "beagle rain roof", "tyres", "tyres in winter are dear"]
    rows = tuple(entry(text, at) for at, text in enumerate(texts))
    extracted = Embedding(EMBEDDER)([Extracted("ada", (), rows)])
    store.shards[0].insert(to_table(extracted, Extracted), "run-1")
    return Retrieval(EMBEDDER, store, Longest())


def test_each_pair_has_a_score_of_its_own_whatever_it_is_read_with(reranker: CrossEncoder):
    together = reranker.score(PAIRS)
    alone = np.concatenate([reranker.score([pair]) for pair in PAIRS])
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert len({round(float(score), 3) for score in together}) == len(PAIRS)
    assert reranker.score([]).shape == (0,)


def test_query_and_text_are_told_apart(reranker: CrossEncoder):
    there, back = reranker.score([PAIRS[0], PAIRS[0][::-1]])
    assert abs(there - back) > 1e-3


def test_the_scores_are_those_of_the_library(reranker: CrossEncoder):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reranker.name)
    model = AutoModelForSequenceClassification.from_pretrained(reranker.name)
    with torch.inference_mode():
        expected = [model(**tokenizer(*p, return_tensors="pt")).logits.item() for p in PAIRS[:2]]
    np.testing.assert_allclose(reranker.score(PAIRS[:2]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("bert", {}, "name a model for sequence classification"),
        ("reranker", {"candidates": 0}, "at least 1"),
        ("reranker", {"depth": 3}, "has no option"),
    ],
)
def test_what_cannot_rerank_is_refused_before_it_is_run(
    tiny_model: Callable[[str], str], kind: str, options: dict[str, int], problem: str
):
    component = Component(use="cross-encoder", options={"model": tiny_model(kind), **options})
    with pytest.raises(ConfigError, match=problem):
        factory.reranker(MemoryConfig(reranker=component))


def test_the_best_candidates_are_ordered_anew(retrieval: Retrieval):
    query = Query("ada", "beagle", limit=2)
    (plain,), (reranked,) = retrieval([query]), retrieval([replace(query, rerank=True)])
    first = [hit.entry.text for hit in retrieval([replace(query, limit=3)])[0]]
    assert [hit.rerank for hit in plain] == [None, None]
    assert [hit.entry.text for hit in reranked] == sorted(first, key=len, reverse=True)[:2]
    scores = [hit.rerank for hit in reranked]
    assert scores == sorted(scores, key=lambda score: -(score or 0))


def test_a_batch_reads_all_pairs_at_once_and_only_those_asked_for(retrieval: Retrieval):
    queries = [Query("ada", "beagle", 1, rerank=True), Query("ada", "rain"), Query("bob", "x")]
    batch = retrieval([*queries, Query("ada", "tyres", 4, rerank=True)])
    assert retrieval.reranker.asked == [3 + 4]  # pyright: ignore
    assert [len(hits) for hits in batch] == [1, 5, 0, 4]
    alone = [retrieval([query])[0] for query in queries]
    assert [[h.entry.id for h in hits] for hits in batch[:3]] == [
        [h.entry.id for h in hits] for hits in alone
    ]


def test_without_a_reranker_the_configuration_is_told(store: MemoryStore):
    with pytest.raises(ConfigError, match="names no reranker: add one under memory"):
        Retrieval(EMBEDDER, store)([Query("ada", "x", rerank=True)])
    assert factory.reranker(MemoryConfig()) is None
