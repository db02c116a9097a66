"""History, undo and searches in the past, as a person uses them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lightmem_core import factory, load_config
from lightmem_core.errors import StoreError
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.render import moment
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import now_ms
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Source, stable_id
from lightmem_pipelines.cli import lightmem
from lightmem_pipelines.output_history import word_diff
from lightmem_pipelines.undo import undo_run

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
USER = "o'neil 用户"


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    return ("--config", str(FAKES), "--store", str(tmp_path / "store"))


@pytest.fixture
def slept(options: tuple[str, ...]) -> list[Entry]:
    """Two memories; a sleep phase has merged the first into the second, and reworded that one."""
    config = load_config(FAKES, uri=options[-1]).memory
    embedder = factory.embedder(config)
    store = MemoryStore.create(config.store, VectorModel.of(embedder))
    texts = ("I live in Porto.", "I live in Porto now.")
    places = [Source("s1", at, f"m{at}") for at in range(2)]
    rows = tuple(
        Entry(stable_id(text), USER, "s1", at, 0, "Ada", text, "", at, None, (places[at],))
        for at, text in enumerate(texts)
    )
    (row,) = Embedding(embedder)([Extracted(USER, (), rows)])
    shard = store.shard_for(USER)
    shard.insert(to_table([row], Extracted), "backfill-1")
    time.sleep(0.002)
    a, b = shard.entries_of([USER])
    written = [
        replace(e, gen=1, changed_by="sleep-1", changed_at=now_ms())
        for e in (
            replace(a, superseded_by=b.id),
            replace(b, text="I live in Lisbon now.", absorbed=a.sources),
        )
    ]
    shard.update(to_table(written, Entry))
    store.runs.write(Run("sleep-1", "sleep", "done", now_ms(), now_ms()))
    return [a, b]


def run(*words: str) -> str:
    out = CliRunner().invoke(lightmem, words, catch_exceptions=False)
    assert out.exit_code == 0, out.output
    return out.output


def told(*words: str) -> Any:
    return json.loads(run(*words, "--json"))


def found(options: tuple[str, ...], *words: str) -> list[str]:
    return sorted(hit["memory"] for hit in told("search", USER, "Porto", *words, *options))


def test_a_search_as_of_a_time_and_one_after_an_undo_find_what_was_there(options, slept):
    before = ["I live in Porto now.", "I live in Porto."]
    assert found(options) == ["I live in Lisbon now."]
    assert found(options, "--as-of", moment(slept[0].stored_at)) == before
    assert found(options, "--as-of", "2001-01-01") == []
    assert found(options, "--as-of", moment(now_ms())[:10]) == ["I live in Lisbon now."]
    run("undo", "sleep-1", *options)
    assert found(options) == before


def test_a_history_tells_when_by_which_run_and_what(options, slept):
    undone = told("undo", "sleep-1", *options)["run"]
    states = told("history", slept[1].id[:14], *options)["states"]
    assert "I live in Porto." in found(options, "--as-of", states[2]["from"])
    assert found(options, "--as-of", states[1]["from"]) == ["I live in Lisbon now."]
    assert [state["run"] for state in states] == ["backfill-1", "sleep-1", undone]
    assert [state["until"] for state in states] == [*(s["from"] for s in states[1:]), None]
    assert states[1]["changed"] == {
        "memory": {"from": "I live in Porto now.", "to": "I live in Lisbon now."},
        "absorbed": [{"session_id": "s1", "position": 0}],
    }
    assert states[2]["changed"]["no_longer_absorbed"] == states[1]["changed"]["absorbed"]
    text = run("history", slept[1].id, *options)
    assert "text: I live in [-Porto-]{+Lisbon+} now.\n  absorbed: s1 #0\n" in text
    tombstone = run("history", slept[0].id, *options)
    assert f"replaced by {slept[1].id[:12]}\n" in tombstone
    assert tombstone.endswith("active again\n")


def test_an_undo_is_a_run_that_reports_and_can_be_undone(options, slept):
    first = told("undo", "sleep-1", *options)
    assert (first["kind"], first["status"], first["restored"]) == ("undo", "done", 2)
    assert first["request"] == {"run": "sleep-1"}
    again = run("undo", "sleep-1", *options)
    assert f"nothing is left to change\n{2:>23,} left as later runs have them: 2 of" in again
    assert told("undo", first["run"], *options)["restored"] == 2
    assert found(options) == ["I live in Lisbon now."]
    report = run("report", first["run"], *options)
    assert "2 restored" in report
    assert len(told("report", "--all", *options)) == 4


def test_an_undo_that_failed_is_finished_under_its_own_name(options, slept, monkeypatch):
    config = load_config(FAKES, uri=options[-1])
    with monkeypatch.context() as patch:
        patch.setattr("lightmem_core.long_term.undo.to_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            undo_run(config, "sleep-1")
    ledger = MemoryStore.open(config.memory.store).runs
    failed = ledger.newest()
    assert (failed.kind, failed.status) == ("undo", "failed")
    with pytest.raises(StoreError, match="finish it with `lightmem undo sleep-1` first"):
        undo_run(config, failed.id)
    assert undo_run(config, "sleep-1").id == failed.id
    assert ledger.get(failed.id).report["restored"] == 2


def test_what_cannot_be_undone_leaves_no_run_behind(options, slept):
    config = load_config(FAKES, uri=options[-1])
    ledger = MemoryStore.open(config.memory.store).runs
    ledger.write(Run("backfill-1", "backfill", "done", 1))
    for name in ("backfill-1", "nothing"):
        with pytest.raises(StoreError):
            undo_run(config, name)
    assert len(ledger.latest()) == 2


@pytest.mark.parametrize(
    ("old", "new", "diff"),
    [
        ("It rains.", "It rains.", "It rains."),
        ("It rains.", "It rains again.", "It rains{+ again+}."),
        ("It rains a lot.", "It rains.", "It rains[- a lot-]."),
        ("I live in Porto.", "I live in Lisbon.", "I live in [-Porto-]{+Lisbon+}."),
        ("", "a", "{+a+}"),
    ],
)
def test_a_word_diff_shows_what_went_and_what_came(old: str, new: str, diff: str):
    assert word_diff(old, new) == diff
