"""What decisions do to the entries as they now are: the rules of a phase, and its repeats."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.long_term.apply import (
    CHANGED_MEANWHILE,
    SOURCE_GONE,
    Applied,
    Phase,
    apply_decisions,
    landed,
)
from lightmem_core.long_term.consolidate import Consolidation
from lightmem_core.long_term.rules import RuleUpdater
from lightmem_core.types import Decision, Entry, Source, UserEntries

Make = Callable[..., Entry]
Rows = dict[str, Entry]

SAME = np.ones(1, np.float32)
NEW_VECTOR = -SAME
STAGE = Consolidation(RuleUpdater(), k=20, theta=0.4)


@pytest.fixture
def rows(entry: Make) -> Callable[..., Rows]:
    """Entries in their order, named "0", "1" ..., from the message at that position."""

    def make(*texts: str, **other) -> Rows:
        made = [entry(t, at, id=str(at), vector=SAME, **other) for at, t in enumerate(texts)]
        return {e.id: e for e in made}

    return make


def decided(action: str, entry: int, successor: int, **other) -> Decision:
    text = f"{entry} from {successor}" if action == "update" else ""
    return Decision("ada", str(entry), action, str(successor), 1.0, "", text, **other)  # pyright: ignore[reportArgumentType]


def phase(decisions: Iterable[Decision], run_id: str = "run-7") -> Phase:
    return Phase(run_id, 99, {d.entry_id: NEW_VECTOR for d in decisions if d.text})


def applied(rows: Rows, *decisions: Decision, run_id: str = "run-7") -> Applied:
    return apply_decisions([*rows.values()], decisions, phase(decisions, run_id))


def after(rows: Rows, *decisions: Decision) -> Rows:
    return rows | {e.id: e for e in applied(rows, *decisions).changed}


def places(entry: Entry) -> list[int]:
    return sorted(s.position for s in (*entry.sources, *entry.absorbed))


def shown(entries: Iterable[Entry]) -> dict[str, str]:
    """All that a row holds, so that two can be compared."""
    return {e.id: f"{replace(e, vector=None)!r} {e.vector}" for e in entries}


# --- one decision ------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["merge", "supersede", "delete"])
def test_a_tombstone_points_to_its_successor_and_to_the_run(rows: Callable[..., Rows], action: str):
    found = after(rows(*"ab", gen=3), decided(action, 0, 1, gen=3, successor_gen=3))
    assert (found["0"].superseded_by, found["0"].text, found["0"].vector) == ("1", "a", SAME)
    assert (found["0"].changed_by, found["0"].changed_at, found["0"].gen) == ("run-7", 99, 4)
    assert places(found["1"]) == ([0, 1] if action == "merge" else [1])
    assert found["1"].gen == (4 if action == "merge" else 3)


def test_an_entry_that_nobody_could_decide_about_stays_as_it_is(rows: Callable[..., Rows]):
    kept = Decision("ada", "0", "keep", "", 0.0, "llm_bad_reply")
    found = applied(rows(*"abc"), kept, decided("merge", 1, 2))
    assert (found.held, found.dropped) == ({"merge": 1}, {})
    assert [e.id for e in found.changed] == ["1", "2"]
    assert landed([*rows(*"abc").values()], [kept], phase([])).dropped == {}


def test_an_update_keeps_the_entry_with_a_new_text_a_new_vector_and_more_sources(
    rows: Callable[..., Rows],
):
    before = rows("a", "b", gen=3)
    found = after(before, decided("update", 0, 1, gen=3, successor_gen=3))
    assert (found["0"].text, found["0"].active, places(found["0"])) == ("0 from 1", True, [0, 1])
    assert (found["0"].vector, found["0"].gen, found["0"].changed_by) == (NEW_VECTOR, 4, "run-7")
    assert found["1"] is before["1"]


def test_an_updated_text_has_a_writer_of_its_own(rows: Callable[..., Rows]):
    before = {i: replace(e, writer="small extract@1") for i, e in rows("a", "b").items()}
    update = decided("update", 0, 1)
    assert after(before, update)["0"].writer == "small extract@1"
    update = replace(update, writer="large update@2")
    found = after(before, update)
    assert [found[i].writer for i in "01"] == ["large update@2", "small extract@1"]
    assert applied(found, update).changed == []


def test_sources_are_handed_on_once(rows: Callable[..., Rows]):
    before = rows(*"abc")
    before["1"] = replace(before["1"], absorbed=before["0"].sources)
    before["2"] = replace(before["2"], sources=(*before["2"].sources, *before["1"].sources))
    found = after(before, decided("merge", 0, 2), decided("merge", 1, 2))
    assert places(found["2"]) == [0, 1, 2]


def test_nothing_is_written_where_nothing_was_decided(rows: Callable[..., Rows]):
    assert applied(rows(*"abc")) == Applied([], applied({}).held, applied({}).dropped)
    assert [e.id for e in applied(rows(*"abc"), decided("delete", 0, 2)).changed] == ["0"]


# --- several decisions -------------------------------------------------------------------------


def test_a_chain_of_merges_hands_all_sources_to_its_last_entry(rows: Callable[..., Rows]):
    merges = [decided("merge", *pair) for pair in [(1, 3), (0, 1), (2, 3)]]
    found = after(rows(*"abcd"), *merges)
    assert [found[str(n)].superseded_by for n in range(4)] == ["1", "3", "3", ""]
    assert places(found["3"]) == [0, 1, 2, 3]


def test_a_chain_of_merges_grows_with_its_length_and_not_its_square(rows: Callable[..., Rows]):
    found = after(rows(*["a"] * 50), *(decided("merge", n, n + 1) for n in range(49)))
    assert len(found["49"].absorbed) == 49
    assert sum(len(e.absorbed) for e in found.values()) == 49


@pytest.mark.parametrize("action", ["supersede", "delete"])
def test_what_goes_hands_on_neither_its_own_sources_nor_those_merged_into_it(
    rows: Callable[..., Rows], action: str
):
    found = after(rows(*"abc"), decided("merge", 0, 1), decided(action, 1, 2))
    assert [found[n].superseded_by for n in "012"] == ["1", "2", ""]
    assert (places(found["1"]), places(found["2"])) == ([0, 1], [2])


@pytest.mark.parametrize("action", ["supersede", "delete"])
def test_an_update_from_what_goes_is_dropped_and_the_entry_kept(
    rows: Callable[..., Rows], action: str
):
    before, gone = rows(*"abc"), (decided("update", 0, 1), decided(action, 1, 2))
    assert after(before, *gone)["0"] is before["0"]
    assert applied(before, *gone).dropped == {SOURCE_GONE: 1}
    assert applied(before, *gone).held == {action: 1}


def test_an_update_from_what_is_merged_or_updated_holds(rows: Callable[..., Rows]):
    found = after(rows(*"abc"), decided("update", 0, 1), decided("merge", 1, 2))
    assert (found["0"].text, places(found["0"]), places(found["2"])) == ("0 from 1", [0, 1], [1, 2])
    found = after(rows(*"abc"), decided("update", 0, 1), decided("update", 1, 2))
    assert [found[n].text for n in "012"] == ["0 from 1", "1 from 2", "c"]
    assert [places(found[n]) for n in "012"] == [[0, 1, 2], [1, 2], [2]]


# --- what happened since it was decided ---------------------------------------------------------

ACTIONS = ("merge", "supersede", "delete", "update")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("changed", ["0", "1"])
def test_an_online_change_of_either_entry_wins(
    rows: Callable[..., Rows], action: str, changed: str
):
    before = rows(*"ab")
    before[changed] = replace(before[changed], gen=1, changed_by="online")
    found = applied(before, decided(action, 0, 1))
    assert (found.changed, found.held, found.dropped) == ([], {}, {CHANGED_MEANWHILE: 1})


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("erased", ["0", "1"])
def test_an_entry_that_is_gone_is_no_error(rows: Callable[..., Rows], action: str, erased: str):
    before = rows(*"ab")
    del before[erased]
    assert applied(before, decided(action, 0, 1)).dropped == {CHANGED_MEANWHILE: 1}


def test_a_source_that_was_changed_meanwhile_is_not_gone(rows: Callable[..., Rows]):
    """The deletion of 1 no longer holds, for 2 was changed: the update drawn from 1 does."""
    before = rows(*"abc")
    before["2"] = replace(before["2"], gen=1, changed_by="online")
    found = applied(before, decided("update", 0, 1), decided("delete", 1, 2))
    assert (found.held, found.dropped) == ({"update": 1}, {CHANGED_MEANWHILE: 1})


def test_sources_lost_to_an_online_write_of_the_heir_are_handed_on_by_the_repeat(
    rows: Callable[..., Rows],
):
    before, decision = rows(*"ab"), decided("merge", 0, 1)
    torn = after(before, decision) | {"1": replace(before["1"], gen=1, changed_by="online")}
    mended = after(torn, decision)
    assert (places(mended["1"]), mended["1"].gen) == ([0, 1], 2)
    assert mended["0"] is torn["0"]
    assert applied(mended, decision).changed == []
    assert applied(mended, decision).held == {"merge": 1}


def test_a_mended_heir_is_not_taken_for_what_was_judged(rows: Callable[..., Rows]):
    """1 was to be deleted, then changed online, then mended by the phase itself: it stays."""
    decisions = (decided("merge", 0, 1), decided("delete", 1, 2))
    landed = after(rows(*"abc"), *decisions)
    torn = landed | {"1": replace(rows(*"abc")["1"], gen=1, changed_by="online")}
    mended = after(torn, *decisions)
    assert (mended["1"].active, places(mended["1"])) == (True, [0, 1])
    assert applied(mended, *decisions).changed == []


def test_what_was_taken_back_stays_so(rows: Callable[..., Rows]):
    before, decision = rows(*"ab"), decided("supersede", 0, 1)
    undone = before | {"0": replace(before["0"], gen=2, changed_by="undo-1")}
    assert applied(undone, decision).dropped == {CHANGED_MEANWHILE: 1}
    assert after(undone, decision) == undone


# --- laws --------------------------------------------------------------------------------------


@st.composite
def phases(draw: st.DrawFn) -> list[Decision]:
    """Any decisions about some of eight entries, each with a later one."""
    found = []
    for n in range(7):
        action = draw(st.sampled_from(["", *ACTIONS]))
        if action:
            found.append(decided(action, n, draw(st.integers(n + 1, 7))))
    return found


def same_times(rows: Rows) -> Rows:
    return {i: replace(e, said_at=0) for i, e in rows.items()}


@settings(max_examples=200, deadline=None)
@given(decisions=phases(), data=st.data())
def test_the_outcome_depends_neither_on_order_nor_on_what_else_is_at_hand(
    decisions: list[Decision], data: st.DataObject, entry: Make
):
    at_once = {str(n): entry(str(n), n, id=str(n), vector=SAME) for n in range(8)}
    for before in (at_once, same_times(at_once)):
        expected = shown(applied(before, *decisions).changed)
        order = data.draw(st.permutations(decisions))
        turned = dict(data.draw(st.permutations([*before.items()])))
        found = applied(turned, *order)
        assert shown(found.changed) == expected
        assert [e.id for e in found.changed] == [*expected]


@settings(max_examples=200, deadline=None)
@given(decisions=phases(), data=st.data())
def test_applied_twice_or_in_part_it_comes_to_the_same(
    decisions: list[Decision], data: st.DataObject, entry: Make
):
    before = {str(n): entry(str(n), n, id=str(n), vector=SAME) for n in range(8)}
    whole = after(before, *decisions)
    again = applied(whole, *decisions)
    assert again.changed == []
    assert (again.held, again.dropped) == (
        applied(before, *decisions).held,
        applied(before, *decisions).dropped,
    )
    online = data.draw(st.sets(st.sampled_from([*before])))
    torn = whole | {i: replace(before[i], gen=1, changed_by="online") for i in online}
    mended = after(torn, *decisions)
    assert applied(mended, *decisions).changed == []
    for i in online:
        assert (mended[i].text, mended[i].superseded_by) == (before[i].text, "")
    assert no_source_is_lost(before, mended, decisions)


def no_source_is_lost(before: Rows, mended: Rows, decisions: Sequence[Decision]) -> bool:
    """Whoever follows the merges from a tombstone comes to an entry that has its sources."""
    merged = {d.entry_id: d.successor for d in decisions if d.action == "merge"}
    for entry_id in merged:
        last = entry_id
        while last in merged and mended[last].superseded_by:
            last = merged[last]
        if not set(before[entry_id].sources) <= {*mended[last].sources, *mended[last].absorbed}:
            return False
    return True


@settings(max_examples=100, deadline=None)
@given(said=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_consolidating_loses_no_source_and_a_second_night_finds_nothing(
    said: list[int], entry: Make
):
    before = {
        str(at): entry(f"Fact {number}.", at, id=str(at), vector=SAME)
        for at, number in enumerate(said)
    }
    (found,) = STAGE([UserEntries("ada", tuple(before.values()))])
    active = tuple(e for e in after(before, *found).values() if e.active)
    assert len(active) == len(set(said))
    assert sorted(p for e in active for p in places(e)) == list(range(len(said)))
    assert STAGE([UserEntries("ada", active)]) == [[]]


def test_users_do_not_meet(rows: Callable[..., Rows]):
    of_ada = rows(*"abc")
    of_bob = {f"b{i}": replace(e, id=f"b{i}", user_id="bob") for i, e in rows(*"abc").items()}
    ada = (decided("merge", 0, 1), decided("merge", 1, 2))
    bob = tuple(
        replace(d, user_id="bob", entry_id=f"b{d.entry_id}", successor=f"b{d.successor}")
        for d in ada
    )
    together = applied(of_bob | of_ada, *bob, *ada).changed
    apart = [*applied(of_ada, *ada).changed, *applied(of_bob, *bob).changed]
    assert shown(together) == shown(apart)
    assert [e.id for e in together] == ["0", "1", "2", "b0", "b1", "b2"]
    assert places(together[2]) == [0, 1, 2]
    assert Source("s1", 0) in together[5].absorbed
