"""The laws of `lightmem reembed`, on a real local Ray and a real store."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ray

from lightmem_core import Config, factory
from lightmem_core.config import Component
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import StoreError
from lightmem_core.long_term import reembed as core
from lightmem_core.long_term.render import embedding_text
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.store import MemoryStore, VectorModel, table_names
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.commit import Committers
from lightmem_pipelines.output import run_text
from lightmem_pipelines.reembed import ReembedRequest, reembed

pytestmark = pytest.mark.ray

USERS = [f"user {number}" for number in range(6)]
DRINKS = ("tea", "coffee", "water", "milk")
MOVE = ReembedRequest(progress=False)


def row(user: str, session: int, text: str) -> dict[str, object]:
    at = 1_700_000_000 + session * 86_400
    return {
        "user_id": user,
        "session_id": f"s{session}",
        "role": "user",
        "content": text,
        "timestamp": at,
    }


def said(config: Config, write_lines, drinks: tuple[str, ...], name: str) -> None:
    rows = [row(user, DRINKS.index(d), f"I drink {d}.") for user in USERS for d in drinks]
    backfill(config, BackfillRequest((write_lines(name, rows),), progress=False))


def of_dim(config: Config, dim: int) -> Config:
    embedder = Component(use="hash", options={"dim": dim})
    memory = config.memory.model_copy(update={"embedder": embedder})
    return config.model_copy(update={"memory": memory})


@pytest.fixture
def old(config: Config, write_lines) -> Config:
    """Two shards with three entries a user, the first of one user a tombstone."""
    store = config.memory.store.model_copy(update={"shards": 2})
    memory = config.memory.model_copy(update={"store": store})
    config = of_dim(config.model_copy(update={"memory": memory}), 16)
    said(config, write_lines, DRINKS[:3], "early.jsonl")
    shard = MemoryStore.open(store).shard_for(USERS[0])
    first, *_, last = shard.entries_of(USERS[:1])
    change = replace(first, superseded_by=last.id, gen=1, changed_by="night", changed_at=1)
    shard.update(to_table([change], Entry))
    return config


def entries(config: Config) -> list[Entry]:
    store = MemoryStore.open(config.memory.store)
    return [e for s in store.shards for e in s.entries_of(USERS, tombstones=True)]


def without_vectors(rows: list[Entry]) -> list[str]:
    return [repr(replace(entry, vector=None)) for entry in rows]


def test_a_store_moves_while_it_is_written_to_and_goes_on_where_it_was_cut_off(old, write_lines):
    new, model = of_dim(old, 24), VectorModel("hash-24", 24)
    store = MemoryStore.open(old.memory.store)
    begun = core.next_generation(store, model)  # an attempt that was cut off after one shard
    for part in core.Reembedding(HashEmbedder(24))(store.shards[0], begun.shards[0], USERS):
        core.store_embedded(begun.shards[0], part)
    held = begun.shards[0].entries.count_rows(), begun.shards[0].versions.count_rows()
    assert 0 < held[0] < 3 * len(USERS)
    writers = Committers(old, store.model)
    said(old, write_lines, DRINKS[3:], "late.jsonl")
    before = without_vectors(entries(old))
    names = set(table_names(store.database))

    run = reembed(new, MOVE)

    embedded = (run.report["entries"], run.report["versions"])
    assert (run.status, *embedded) == ("done", 4 * len(USERS) - held[0], 1 - held[1])
    after = entries(new)
    assert without_vectors(after) == before
    texts = HashEmbedder(24).encode([embedding_text(entry) for entry in after])
    assert [e.vector.tolist() for e in after if e.vector is not None] == texts.tolist()
    found = factory.retrieval(new.memory)([Query(USERS[1], "what coffee", limit=1)])[0]
    assert found[0].entry.text == "I drink coffee."
    with pytest.raises(StoreError, match="holds vectors of hash-24"):
        factory.retrieval(old.memory)
    with pytest.raises(StoreError, match="vectors of hash-24"):
        ray.get(writers.insert(0, to_table([], Extracted), "late"))
    with pytest.raises(StoreError, match="holds vectors of hash-24"):
        Committers(old, store.model)
    assert names <= set(table_names(store.database))

    again = reembed(new, ReembedRequest(drop_old=True, progress=False))
    assert (again.report["entries"], again.report["versions"]) == (0, 0)
    assert again.report["dropped"] == 4
    assert without_vectors(entries(new)) == before
    assert "was moved before" in run_text(again)


def test_what_was_read_stays_known_and_new_messages_join_under_the_new_embedder(old, write_lines):
    new = of_dim(old, 24)
    reembed(new, MOVE)
    assert "from hash-16 (dimension 16) to hash-24 (dimension 24)" in run_text(
        MemoryStore.open(new.memory.store).runs.newest()
    )
    said(new, write_lines, DRINKS, "all.jsonl")
    assert len(entries(new)) == 4 * len(USERS)
