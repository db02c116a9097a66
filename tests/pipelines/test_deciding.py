"""A shard's changes while others write to it: online writes win, and nothing is left half done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightmem_core import Config, load_config
from lightmem_core.long_term import carrying_out
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.schema import to_table
from lightmem_core.types import Decision, Entry, Source
from lightmem_pipelines import deciding
from lightmem_pipelines.deciding import ApplyPortions, rows_of
from lightmem_pipelines.files import RunFiles

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
Raced = Callable[..., Shard]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(FAKES, uri=str(tmp_path / "store"))


@pytest.fixture
def shard(config: Config) -> Shard:
    """Six entries of Ada."""
    shard = MemoryStore.create(config.memory.store, VectorModel("hash-4", 4)).shards[0]
    vector = np.eye(4, dtype=np.float32)[0]
    rows = [
        Entry(str(n), "ada", "s", n, 0, "A", f"said {n}", "", n, None, (Source("s", n),))
        for n in range(6)
    ]
    table = to_table([replace(e, vector=vector) for e in rows], Entry)
    shard.entries.add(table.cast(shard.entries.schema))
    return shard


@pytest.fixture
def apply(config: Config) -> ApplyPortions:
    """0 and 2 are merged into 4 and 3 is superseded by it: in two portions."""
    files = RunFiles.of(config.memory.store, "sleep-1")
    portions = {"a": [("merge", 0, 4), ("merge", 2, 4)], "b": [("supersede", 3, 4)]}
    for name, decided in portions.items():
        rows = [Decision("ada", str(i), how, str(j), 1.0, "") for how, i, j in decided]  # pyright: ignore[reportArgumentType]
        files.write_rows("decisions", name, to_table(rows, Decision))
    return ApplyPortions(files, ["a", "b"], {})


class RacedShard(Shard):
    """A shard that another writer changes right before each of the first commits."""

    races: tuple[str, ...] = ()

    def update(self, changed) -> int:
        if self.races:
            raced, *left = self.races
            self.races = tuple(left)
            (entry,) = (e for e in self.entries_of(["ada"], tombstones=True) if e.id == raced)
            text = f"{entry.text}, online"
            online = replace(entry, text=text, gen=entry.gen + 1, changed_by="online")
            assert super().update(to_table([online], Entry)) == 0
        return super().update(changed)


def raced(shard: Shard, *races: str) -> RacedShard:
    other = RacedShard(shard.number, shard.entries, shard.messages, shard.versions)
    other.races = races
    return other


def state(shard: Shard) -> dict[str, tuple[str, str, list[int], int]]:
    return {
        e.id: (e.text, e.superseded_by, sorted(s.position for s in e.absorbed), e.gen)
        for e in shard.entries_of(["ada"], tombstones=True)
        if e.gen
    }


def test_all_portions_of_a_shard_are_one_commit_and_once_is_enough(
    shard: Shard, apply: ApplyPortions
):
    before = shard.entries.version
    outcome = apply(shard)
    assert (outcome.held, outcome.dropped) == ({"merge": 2, "supersede": 1}, {})
    assert state(shard) == {
        "0": ("said 0", "4", [], 1),
        "2": ("said 2", "4", [], 1),
        "3": ("said 3", "4", [], 1),
        "4": ("said 4", "", [0, 2], 1),
    }
    version = shard.entries.version
    assert version == before + 1
    assert apply(shard) == outcome
    assert shard.entries.version == version


def test_an_heir_that_is_changed_right_before_the_commit_keeps_both(
    shard: Shard, apply: ApplyPortions
):
    outcome = apply(raced(shard, "4", "4"))
    assert (outcome.held, outcome.dropped) == ({"merge": 2, "supersede": 1}, {})
    assert state(shard)["4"] == ("said 4, online, online", "", [0, 2], 3)
    assert {i for i, row in state(shard).items() if row[1] == "4"} == {"0", "2", "3"}


def test_an_entry_that_is_changed_right_before_the_commit_stays(shard: Shard, apply: ApplyPortions):
    outcome = apply(raced(shard, "3"))
    assert (outcome.held, outcome.dropped) == ({"merge": 2}, {"changed meanwhile": 1})
    assert state(shard)["3"] == ("said 3, online", "", [], 1)


def test_a_writer_who_is_always_faster_is_left_alone_in_the_end(shard: Shard, apply: ApplyPortions):
    outcome = apply(raced(shard, *["4"] * 99))
    assert state(shard)["4"][0].count("online") == carrying_out.ROUNDS
    assert state(shard)["4"][2] == []
    assert (outcome.held, outcome.dropped) == ({"supersede": 1}, {"changed meanwhile": 2})


def test_an_entry_whose_writer_is_always_faster_counts_as_changed_meanwhile(
    shard: Shard, apply: ApplyPortions, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(carrying_out, "ROUNDS", 1)
    outcome = apply(raced(shard, "3"))
    assert (outcome.held, outcome.dropped) == ({"merge": 2}, {"changed meanwhile": 1})


def test_a_shard_of_many_fragments_is_compacted_in_the_end(shard: Shard, apply: ApplyPortions):
    rows = [e for e in shard.entries_of(["ada"]) if e.id == "5"]
    for n in range(30):
        more = [replace(e, id=f"more {n}") for e in rows]
        shard.entries.add(to_table(more, Entry).cast(shard.entries.schema))
    apply(shard)
    shard.entries.checkout_latest()
    assert len(shard.entries.to_lance().get_fragments()) < 5
    assert shard.entries.count_rows() == 36


@pytest.mark.parametrize("ids", [1, 2, 3, 1_000])
def test_rows_are_found_whatever_a_filter_holds(
    shard: Shard, monkeypatch: pytest.MonkeyPatch, ids: int
):
    monkeypatch.setattr(deciding, "IDS_PER_FILTER", ids)
    asked = [Decision("ada", str(n), "merge", str(n + 1), 1, "") for n in (0, 1, 2, 4)]
    asked.append(Decision("bob", "0", "merge", "3", 1, ""))
    found = rows_of(shard, asked)
    assert sorted(e.id for e in found) == ["0", "1", "2", "3", "4", "5"]
    assert rows_of(shard, []) == []
