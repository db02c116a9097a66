import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.errors import StoreError
from lightmem_core.long_term import undo as undo_module
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import now_ms
from lightmem_core.long_term.undo import UndoReport, undo
from lightmem_core.long_term.versions import entries_as_of, history
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Source

MODEL = VectorModel("hash-16", 16)
USERS = ["ada", "o'neil", "' OR 1=1 --", "x') OR user_id IN ('ada", "ünïcödé 😀 用户"]


@pytest.fixture
def put(entry: Callable[..., Entry], axis: Callable[..., np.ndarray]) -> Callable[..., list[Entry]]:
    """Store entries of a user, each from a message of its own, and return them as stored."""

    def store_entries(
        store: MemoryStore, *texts: str, user: str = "ada", start: int = 0
    ) -> list[Entry]:
        rows = tuple(
            entry(
                text, at, user_id=user, vector=axis(at), sources=(Source("s1", at, f"{user} {at}"),)
            )
            for at, text in enumerate(texts, start)
        )
        store.shard_for(user).insert(to_table([Extracted(user, (), rows)], Extracted), "run-1")
        written = {e.id for e in rows}
        return [e for e in rows_of(store, user) if e.id in written]

    return store_entries


def rows_of(store: MemoryStore, user: str = "ada") -> list[Entry]:
    return store.shard_for(user).entries_of([user], tombstones=True)


def now_of(store: MemoryStore, entry: Entry) -> Entry:
    return next(e for e in rows_of(store, entry.user_id) if e.id == entry.id)


def changed_in(store: MemoryStore, run: str, *entries: Entry) -> None:
    """Write entries as a finished run of a sleep phase does that changed them."""
    time.sleep(0.002)
    written = [replace(e, gen=e.gen + 1, changed_by=run, changed_at=now_ms()) for e in entries]
    for number, users in store.by_shard({e.user_id for e in written}).items():
        rows = [e for e in written if e.user_id in users]
        assert store.shards[number].update(to_table(rows, Entry)) == 0
    finished(store, run)


def merged(store: MemoryStore, run: str, old: Entry, heir: Entry) -> None:
    """Merge one entry into another."""
    old, heir = now_of(store, old), now_of(store, heir)
    absorbed = tuple(dict.fromkeys((*heir.absorbed, *old.absorbed, *old.sources)))
    changed_in(store, run, replace(old, superseded_by=heir.id), replace(heir, absorbed=absorbed))


def finished(store: MemoryStore, run: str) -> None:
    store.runs.write(Run(run, run.partition("-")[0], "done", now_ms(), now_ms()))


def undone(store: MemoryStore, run: str, by: str = "undo-1") -> UndoReport:
    time.sleep(0.002)
    report = undo(store, run, by)
    finished(store, by)
    return report


def content(entries: Iterable[Entry]) -> list[str]:
    """All that entries hold but for who changed them last, with their vectors."""
    bare = [replace(e, gen=0, changed_by="", changed_at=0) for e in entries]
    return [f"{e!r} {e.vector}" for e in bare]


def absorbed(store: MemoryStore, entry: Entry) -> list[int]:
    """The positions of the messages that an entry absorbed."""
    return [source.position for source in now_of(store, entry).absorbed]


# --- one run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("portion", [1, 5_000])
def test_an_undo_gives_the_rows_as_they_were(
    tmp_path: Path,
    put: Callable[..., list[Entry]],
    monkeypatch: pytest.MonkeyPatch,
    portion: int,
):
    monkeypatch.setattr(undo_module, "PORTION", portion)
    store = MemoryStore.create(StoreConfig(uri=str(tmp_path / "store"), shards=2), MODEL)
    for user in USERS:
        a, b, c = put(store, "a", "b", "c", user=user)
        merged(store, "sleep-0", a, b)
    before = {user: rows_of(store, user) for user in USERS}
    asleep = []
    for user in USERS[:-1]:
        a, b, c = before[user]
        changed = replace(
            c, text="b and c", writer="another", vector=a.vector, absorbed=(*b.absorbed, *b.sources)
        )
        asleep += [replace(b, superseded_by=c.id), changed]
    changed_in(store, "sleep-o'1", *asleep)
    report = undone(store, "sleep-o'1")
    assert (report.restored, report.corrected, report.later) == (2 * (len(USERS) - 1), 0, {})
    for user in USERS:
        assert content(rows_of(store, user)) == content(before[user])
    a, b, c = rows_of(store, "o'neil")
    assert [e.gen for e in (a, b, c)] == [1, 3, 2]
    assert [e.changed_by for e in (a, b, c)] == ["sleep-0", "undo-1", "undo-1"]
    assert [e.gen for e in rows_of(store, USERS[-1])] == [1, 1, 0]


def test_an_undo_stands_in_the_history_and_the_past_stays_as_it_was(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b = put(store, "It rains.", "It rains again.")
    merged(store, "sleep-1", a, b)
    asleep = now_of(store, a)
    undone(store, "sleep-1")
    states = history(store, a.id).states
    assert [(e.changed_by, e.superseded_by) for e in states] == [
        ("", ""),
        ("sleep-1", b.id),
        ("undo-1", ""),
    ]
    then = entries_as_of(store.shards[0], "ada", asleep.changed_at)
    assert [e.active for e in then] == [False, True]
    assert [e.active for e in entries_as_of(store.shards[0], "ada", now_ms())] == [True, True]


def test_an_undo_of_an_undo_brings_the_change_back(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, c = put(store, "a", "b", "c")
    merged(store, "sleep-1", a, b)
    changed_in(store, "sleep-1", replace(now_of(store, c), text="c, reworded", vector=a.vector))
    before, asleep = [a, b, c], rows_of(store)
    for number in range(1, 5):
        run = f"undo-{number - 1}" if number > 1 else "sleep-1"
        assert undone(store, run, f"undo-{number}").restored == 3
        assert content(rows_of(store)) == content(before if number % 2 else asleep)
    assert [len(history(store, e.id).states) for e in (a, b, c)] == [6, 6, 6]


def test_what_a_run_changed_twice_goes_back_to_before_the_run(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, c = put(store, "a", "b", "c")
    merged(store, "sleep-1", a, c)
    merged(store, "sleep-1", b, c)
    undone(store, "sleep-1")
    assert content(rows_of(store)) == content([a, b, c])


def test_undone_twice_changes_nothing_more(store: MemoryStore, put: Callable[..., list[Entry]]):
    a, b = put(store, "a", "b")
    merged(store, "sleep-1", a, b)
    undone(store, "sleep-1")
    before = list(map(repr, rows_of(store)))
    again = undone(store, "sleep-1", "undo-2")
    assert (again.restored, again.corrected, again.later) == (0, 0, {"undo-1": 2})
    assert list(map(repr, rows_of(store))) == before


# --- what was written later --------------------------------------------------------------------


def test_what_was_stored_or_changed_later_is_kept(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, c, d = put(store, "a", "b", "c", "d")
    merged(store, "sleep-1", a, b)
    merged(store, "sleep-1", c, d)
    (new,) = put(store, "e", start=4)
    changed_in(store, "online-1", replace(now_of(store, d), text="d, as put right"))
    late = now_of(store, d)
    report = undone(store, "sleep-1")
    assert (report.restored, report.corrected, report.later) == (3, 1, {"online-1": 1})
    assert content([now_of(store, e) for e in (a, b, c, new)]) == content([a, b, c, new])
    assert content([now_of(store, d)]) == content([replace(late, absorbed=())])
    assert undone(store, "undo-1", "undo-2").restored == 4
    assert content([now_of(store, d)]) == content([late])
    assert not now_of(store, c).active


def test_a_tombstone_that_was_changed_later_stays_and_keeps_its_sources_where_they_are(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, c = put(store, "a", "b", "c")
    merged(store, "sleep-1", a, c)
    merged(store, "sleep-1", b, c)
    changed_in(store, "online-1", replace(now_of(store, a), topic="weather"))
    changed_in(store, "online-1", replace(now_of(store, c), topic="weather"))
    report = undone(store, "sleep-1")
    assert (report.restored, report.corrected, report.later) == (1, 1, {"online-1": 2})
    assert [now_of(store, e).active for e in (a, b, c)] == [False, True, True]
    assert absorbed(store, c) == [0]


def test_sources_are_kept_that_come_from_another_tombstone_too(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, d = put(store, "a", "b", "d")
    changed_in(store, "online-0", replace(b, sources=(*a.sources, *b.sources)))
    merged(store, "sleep-1", a, d)
    merged(store, "sleep-2", b, d)
    assert undone(store, "sleep-1").restored == 1
    assert absorbed(store, d) == [0, 1]


def test_sources_are_taken_out_of_all_that_they_came_to_through_later_merges(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, c, d, other = put(store, "a", "b", "c", "d", "other")
    merged(store, "sleep-0", other, d)
    merged(store, "sleep-1", a, b)
    merged(store, "sleep-2", b, c)
    merged(store, "sleep-3", c, d)
    asleep = rows_of(store)
    report = undone(store, "sleep-1")
    assert (report.restored, report.corrected, report.later) == (1, 3, {"sleep-2": 1})
    assert [absorbed(store, e) for e in (a, b, c, d)] == [[], [], [1], [4, 1, 2]]
    assert [now_of(store, e).active for e in (a, b, c, d)] == [True, False, False, True]
    assert undone(store, "undo-1", "undo-2").restored == 4
    assert content(rows_of(store)) == content(asleep)


def test_sources_are_taken_out_of_what_the_last_of_a_chain_was_given(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    """Within one run the last entry of a chain of merges takes the sources of all the others."""
    *chain, last = put(store, *map(str, range(6)))
    before = rows_of(store)
    tombstones = [replace(e, superseded_by=h.id) for e, h in zip(chain, before[1:], strict=True)]
    given = tuple(source for e in chain for source in e.sources)
    changed_in(store, "sleep-1", *tombstones, replace(last, absorbed=given))
    changed_in(store, "online-1", replace(now_of(store, last), topic="numbers"))
    asleep = rows_of(store)
    report = undone(store, "sleep-1")
    assert (report.restored, report.corrected) == (5, 1)
    assert content(rows_of(store)) == content([*before[:-1], replace(last, topic="numbers")])
    changed_in(store, "online-2", replace(now_of(store, last), topic=""))
    undone(store, "undo-1", "undo-2")
    assert content(rows_of(store)) == content([*asleep[:-1], replace(asleep[-1], topic="")])


def test_sources_that_came_before_the_run_are_left_alone(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, c, d = put(store, "a", "b", "c", "d")
    merged(store, "sleep-0", a, b)
    merged(store, "sleep-1", b, c)
    merged(store, "sleep-2", d, c)
    undone(store, "sleep-1")
    assert (absorbed(store, b), absorbed(store, c)) == ([0], [3])
    assert [now_of(store, e).active for e in (a, b, c, d)] == [False, True, True, False]


def test_an_undo_of_an_undo_gives_sources_back_to_what_changed_in_between(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b, c = put(store, "a", "b", "c")
    merged(store, "sleep-1", a, c)
    undone(store, "sleep-1")
    merged(store, "sleep-2", b, c)
    report = undone(store, "undo-1", "undo-2")
    assert (report.restored, report.corrected, report.later) == (1, 1, {"sleep-2": 1})
    assert not now_of(store, a).active
    assert absorbed(store, c) == [1, 0]


def test_a_write_that_comes_in_between_wins(
    store: MemoryStore, put: Callable[..., list[Entry]], monkeypatch: pytest.MonkeyPatch
):
    a, b = put(store, "a", "b")
    merged(store, "sleep-1", a, b)
    read = undo_module.states_of

    def read_and_be_overtaken(*args):
        found = read(*args)
        changed_in(store, "online-1", replace(now_of(store, a), topic="weather"))
        return found

    monkeypatch.setattr(undo_module, "states_of", read_and_be_overtaken)
    report = undo(store, "sleep-1", "undo-1")
    assert (report.restored, report.changed_meanwhile) == (1, 1)
    assert [e.changed_by for e in rows_of(store)] == ["online-1", "undo-1"]


def test_a_shard_of_many_fragments_is_compacted_in_the_end(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b = put(store, "a", "b")
    merged(store, "sleep-1", a, b)
    for at in range(2, 26):
        put(store, "more", start=at)
    undone(store, "sleep-1")
    entries = store.shards[0].entries
    entries.checkout_latest()
    assert len(entries.to_lance().get_fragments()) < 5
    assert entries.count_rows() == 26


# --- cut off and refused -----------------------------------------------------------------------


@pytest.mark.parametrize("cut_before", ["the first user", "the second user"])
def test_an_undo_that_is_cut_off_and_repeated_ends_the_same(
    store: MemoryStore,
    put: Callable[..., list[Entry]],
    monkeypatch: pytest.MonkeyPatch,
    cut_before: str,
):
    for user in USERS[:2]:
        a, b, c = put(store, "a", "b", "c", user=user)
        merged(store, "sleep-1", a, b)
        merged(store, "sleep-2", b, c)
    asleep = [e for user in USERS[:2] for e in rows_of(store, user)]
    monkeypatch.setattr(undo_module, "PORTION", 1)
    with monkeypatch.context() as patch:
        calls = iter([None] if cut_before == "the second user" else [])
        entries, write = store.shards[0].entries, type(store.shards[0]).update

        def dies(shard, changed):
            """Between the versions and the entries, as the worst case."""
            if next(calls, "cut") == "cut":
                shard._keep_versions(changed.cast(entries.schema))
                raise ConnectionError("the writer died")
            return write(shard, changed)

        patch.setattr(type(store.shards[0]), "update", dies)
        with pytest.raises(ConnectionError):
            undo(store, "sleep-1", "undo-1")
    report = undone(store, "sleep-1")
    assert (report.restored, report.later) == (2, {"sleep-2": 2})
    for user in USERS[:2]:
        a, b, c = rows_of(store, user)
        assert [e.active for e in (a, b, c)] == [True, False, True]
        assert [absorbed(store, e) for e in (b, c)] == [[], [1]]
        assert len(history(store, a.id).states) == 3
    undone(store, "undo-1", "undo-2")
    after = [e for user in USERS[:2] for e in rows_of(store, user)]
    assert content(after) == content(asleep)


@pytest.mark.parametrize("status", ["running", "failed"])
def test_what_an_interrupted_sleep_had_changed_is_undone_and_it_does_not_go_on(
    store: MemoryStore, put: Callable[..., list[Entry]], status: str
):
    a, b, _ = put(store, "a", "b", "c")
    before = rows_of(store)
    merged(store, "sleep-1", a, b)
    store.runs.write(replace(store.runs.get("sleep-1"), status=status))
    assert undone(store, "sleep-1").restored == 2
    assert content(rows_of(store)) == content(before)
    assert store.runs.get("sleep-1").status == "undone"
    assert store.runs.last_of("sleep", {}).status == "undone"
    assert undone(store, "sleep-1", "undo-2").later == {"undo-1": 2}


def test_there_are_as_many_commits_as_changed_entries_need(
    store: MemoryStore, put: Callable[..., list[Entry]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(undo_module, "PORTION", 6)  # two users' entries, and three users' changes
    changed = []
    for number in range(12):
        a, b, _ = put(store, "a", "b", "c", user=f"user-{number:02}")
        changed += [replace(a, superseded_by=b.id), replace(b, absorbed=a.sources)]
    changed_in(store, "sleep-1", *changed)
    version = store.shards[0].entries.version
    assert undone(store, "sleep-1").restored == 24
    assert store.shards[0].entries.version == version + 3


def test_only_a_sleep_that_changed_something_or_a_finished_undo_can_be_undone(store: MemoryStore):
    store.runs.write(Run("backfill-1", "backfill", "done", 1))
    store.runs.write(Run("sleep-1", "sleep", "planned", 2))
    store.runs.write(Run("undo-1", "undo", "running", 3, request={"run": "sleep-0"}))
    for run, reason in {
        "backfill-1": "backfill-1 is a backfill: only what a sleep or an undo changed",
        "sleep-1": "sleep-1 has changed nothing",
        "undo-1": r"undo-1 is not finished \(running\): finish it with `lightmem undo sleep-0`",
        "' OR 1=1 --": "there is no run .*the latest are",
    }.items():
        with pytest.raises(StoreError, match=reason):
            undo(store, run, "undo-2")


def test_an_entry_whose_versions_are_gone_is_left_and_counted(
    store: MemoryStore, put: Callable[..., list[Entry]]
):
    a, b = put(store, "a", "b")
    merged(store, "sleep-1", a, b)
    store.shards[0].versions.delete("true")
    before = list(map(repr, rows_of(store)))
    report = undone(store, "sleep-1")
    assert (report.restored, report.without_version) == (0, 2)
    assert list(map(repr, rows_of(store))) == before
