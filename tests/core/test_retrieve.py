from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.retrieve import Hit, Query, Retrieval
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted

EMBEDDER = HashEmbedder(16)
TALK = (
    "we adopted a beagle",
    "the roof leaks again",
    "tickets to Lisbon are cheap",
    "my sister paints landscapes",
    "winter tyres are expensive",
    "the beagle eats shoes",
)


@pytest.fixture
def put(store: MemoryStore, entry: Callable[..., Entry]) -> Callable[..., tuple[Entry, ...]]:
    """Store entries of a user, ten milliseconds apart."""

    def store_entries(*texts: str, user: str = "ada", start: int = 0) -> tuple[Entry, ...]:
        rows = tuple(
            entry(text, 10 * at, user_id=user, position=at) for at, text in enumerate(texts, start)
        )
        (row,) = Embedding(EMBEDDER)([Extracted(user, (), rows)])
        store.shard_for(user).insert(to_table([row], Extracted), "run-1")
        return row.entries

    return store_entries


@pytest.fixture
def retrieval(store: MemoryStore, put: Callable[..., tuple[Entry, ...]]) -> Retrieval:
    put(*TALK)
    put("the beagle belongs to bob", "bob sails", user="bob")
    return Retrieval(EMBEDDER, store)


def texts(hits: list[Hit]) -> list[str]:
    return [hit.entry.text for hit in hits]


def search(
    retrieval: Retrieval, text: str = "the beagle", user: str = "ada", **bounds
) -> list[str]:
    return texts(retrieval([Query(user, text, **{"limit": 99, **bounds})])[0])


def test_only_the_entries_of_the_user_are_found(retrieval: Retrieval):
    assert sorted(search(retrieval)) == sorted(TALK)
    assert sorted(search(retrieval, user="bob")) == ["bob sails", "the beagle belongs to bob"]


def test_the_best_entry_comes_first_and_hits_are_sorted(retrieval: Retrieval):
    (hits,) = retrieval([Query("ada", "are the winter tyres expensive", 99)])
    assert hits[0].entry.text == "winter tyres are expensive"
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [(10, 20, {1, 2}), (40, None, {4, 5}), (None, 0, {0}), (11, 19, set())],
)
def test_since_and_until_are_included(
    retrieval: Retrieval, since: int | None, until: int | None, found: set[int]
):
    assert set(search(retrieval, since=since, until=until)) == {TALK[i] for i in found}


def test_the_limit_is_that_of_what_lies_within_the_bounds(retrieval: Retrieval):
    ranked = search(retrieval, since=20)
    assert len(ranked) == 4
    assert search(retrieval, since=20, limit=2) == ranked[:2]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int):
    with pytest.raises(ValueError, match="limit must be at least 1"):
        Query("ada", "x", limit)


def test_what_is_committed_is_found_by_the_next_search(
    retrieval: Retrieval, put: Callable[..., tuple[Entry, ...]]
):
    assert "the beagle is asleep" not in search(retrieval)
    put("the beagle is asleep", start=6)
    assert "the beagle is asleep" in search(retrieval)


def test_what_another_process_commits_is_found_by_the_next_search(
    retrieval: Retrieval, store_config, put: Callable[..., tuple[Entry, ...]]
):
    server = Retrieval(EMBEDDER, MemoryStore.open(store_config))
    assert len(search(server)) == 6
    put("the beagle is asleep", start=6)
    assert len(search(server)) == 7


def test_tombstones_are_not_found(retrieval: Retrieval, store: MemoryStore):
    first, *_, heir = store.shards[0].entries_of(["ada"])
    search(retrieval)
    for sources in ((), first.sources):
        changed = [
            replace(first, superseded_by=heir.id, gen=first.gen + 1),
            replace(heir, absorbed=sources, gen=heir.gen + 1),
        ]
        store.shards[0].update(to_table(changed, Entry))
        assert sorted(search(retrieval)) == sorted(TALK[1:])
        first, heir = replace(first, gen=first.gen + 1), replace(heir, gen=heir.gen + 1)


def test_an_index_is_kept_until_a_commit(
    retrieval: Retrieval, put: Callable[..., tuple[Entry, ...]]
):
    kept = retrieval.index("ada")
    assert retrieval.index("ada") is kept
    put("ada is ill", start=9)
    assert retrieval.index("ada") is not kept


@pytest.mark.parametrize("user", ["nobody", "", "' OR 1=1 --", "ada' --", "AD%"])
def test_an_unknown_user_has_no_memories(retrieval: Retrieval, user: str):
    assert search(retrieval, user=user) == []


def test_answers_do_not_depend_on_the_batch(retrieval: Retrieval):
    queries = [
        Query("ada", "beagle shoes", 3),
        Query("bob", "who sails", 1),
        Query("ada", "", 6),
        Query("nobody", "beagle"),
        Query("ada", "lisbon tickets", 2, since=10, until=20),
    ]

    def plain(answers: list[list[Hit]]) -> list[list[tuple[str, float, float]]]:
        return [[(hit.entry.id, hit.score, hit.cosine) for hit in hits] for hits in answers]

    assert plain(retrieval(queries)) == [plain(retrieval([query]))[0] for query in queries]
    assert retrieval([]) == []


def test_a_hit_carries_its_entry_and_all_scores(retrieval: Retrieval):
    (hit,) = retrieval([Query("ada", "Ada: winter tyres are expensive", 1)])[0]
    assert (hit.entry.user_id, hit.entry.said_at, hit.entry.sources[0].position) == ("ada", 40, 4)
    assert hit.cosine == pytest.approx(1)
    assert np.isfinite([hit.score, hit.window, hit.bm25, hit.speaker]).all()
    assert hit.speaker == 1
