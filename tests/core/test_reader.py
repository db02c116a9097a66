"""A reader of a store that others write to: what waits, what is stored, and whose it is."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest

from lightmem_core.config import Component, MemoryConfig, StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import RequestError
from lightmem_core.long_term import tables
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.erase import erase_rows
from lightmem_core.long_term.retrieve import Query
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import now_ms
from lightmem_core.online.filters import parse
from lightmem_core.online.inbox import Inbox, Waiting
from lightmem_core.online.overview import Asked
from lightmem_core.online.provisional import Provisional, WaitingEntry
from lightmem_core.online.reader import OnlineReader
from lightmem_core.schema import to_table
from lightmem_core.types import DELETED, Entry, Extracted, Message, Source

SAID = ("we adopted a beagle", "the roof leaks", "tickets to Lisbon", "my sister paints")
Accept = Callable[..., list[Message]]
Extract = Callable[..., list[Entry]]


@pytest.fixture
def memory(store_config: StoreConfig) -> MemoryConfig:
    hash16 = Component(use="hash", options={"dim": 16})
    return MemoryConfig(tokenizer=Component(use="words"), embedder=hash16, store=store_config)


@pytest.fixture
def reader(memory: MemoryConfig, store: MemoryStore) -> OnlineReader:
    """Of another process: it shares no handle with the one that writes."""
    return OnlineReader(memory)


@pytest.fixture
def accept(store: MemoryStore, message: Callable[..., Message]) -> Accept:
    """Have messages wait."""

    def wait(*texts: str, start: int = 0, user: str = "ada", **other: object) -> list[Message]:
        messages = [
            message(text, at, user_id=user, said_at=1_000 * at, **other)
            for at, text in enumerate(texts, start)
        ]
        rows = [Waiting.of(m, accepted_at=now_ms()) for m in messages]
        Inbox.of(store, user).accept(rows)
        return messages

    return wait


@pytest.fixture
def extract(store: MemoryStore, entry: Callable[..., Entry]) -> Extract:
    """Store an entry for each message, word for word, and the messages."""

    def write(messages: Sequence[Message], silent: Sequence[Message] = ()) -> list[Entry]:
        user = messages[0].user_id
        rows = tuple(
            entry(m.content, m.said_at, m.session_id, user_id=user, position=m.position,
                  agent_id=m.agent_id, metadata=m.metadata,
                  sources=(Source(m.session_id, m.position, m.id),))
            for m in messages
        )  # fmt: skip
        stored = [replace(m, state="stored") for m in messages]
        stored += [replace(m, state="no_facts") for m in silent]
        (row,) = Embedding(HashEmbedder(16))([Extracted(user, tuple(stored), rows)])
        store.shard_for(user).insert(to_table([row], Extracted), "run-1")
        return list(row.entries)

    return write


def found(reader: OnlineReader, text: str = "the beagle", user: str = "ada", **more) -> list[Entry]:
    (hits,) = reader.search([Query(user, text, **{"limit": 99, **more})])
    return [hit.entry for hit in hits]


def texts(entries: Sequence[Entry]) -> list[str]:
    return [entry.text for entry in entries]


def change(store: MemoryStore, entry: Entry, **values: object) -> Entry:
    now = replace(entry, **values, gen=entry.gen + 1, changed_at=now_ms(), changed_by="run-2")
    store.shard_for(entry.user_id).update(to_table([now], Entry))
    return now


# --- what waits --------------------------------------------------------------------------------


def test_what_was_accepted_is_found_before_it_is_extracted(reader: OnlineReader, accept: Accept):
    assert found(reader) == []
    beagle, roof = accept(*SAID[:2], metadata='{"place": "home"}')
    best = found(reader, "beagle")[0]
    assert (best.id, best.text, best.topic) == (beagle.id, SAID[0], "waiting")
    assert best.sources == (Source("s1", 0, beagle.id),)
    assert texts(reader.list("ada", 9)) == [SAID[1], SAID[0]]
    assert [e.id for e in found(reader, wanted=parse({"place": "home"}))] == [
        e.id for e in found(reader)
    ]
    assert reader.get(roof.id) is not None
    assert reader.get(roof.id, "ada") is not None
    assert reader.get(roof.id, "bob") is None
    assert reader.history(roof.id, "ada").states[0].text == SAID[1]
    assert reader.users(9) == ["ada"]
    assert found(reader, user="bob") == []


def test_a_message_is_seen_or_its_entries_but_never_both_or_neither(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    waiting = accept(*SAID)
    inbox = Inbox.of(store, "ada")
    assert sorted(texts(found(reader))) == sorted(SAID)
    entries = extract(waiting[:2], silent=waiting[2:3])
    for _ in range(2):  # the inbox has not been told yet, then it has
        assert {e.id for e in found(reader)} >= {e.id for e in entries}
        assert texts(found(reader)).count(SAID[0]) == 1
        inbox.remove([m.id for m in waiting[:3]])
    assert sorted(texts(found(reader))) == sorted([*SAID[:2], SAID[3]])
    assert texts(reader.list("ada", 9)) == [SAID[3], SAID[1], SAID[0]]
    deleted = change(store, entries[0], superseded_by=DELETED)
    accept(SAID[0])
    assert deleted.text not in texts(found(reader))


class Interrupted:
    """What waits, extracted by another process just before or after it is read."""

    def __init__(self, waiting: Provisional, flush: Callable[[], None], early: bool):
        self.waiting, self.flush, self.early = waiting, flush, early
        self.messages = waiting.messages

    def entries(self, user_id: str) -> Sequence[Entry]:
        if self.early:
            self.flush()
        found = self.waiting.entries(user_id)
        if not self.early:
            self.flush()
        return found


@pytest.mark.parametrize("early", [True, False])
def test_a_message_that_is_extracted_while_it_is_read_is_seen_once(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore, early: bool
):
    messages = accept(*SAID)
    assert len(found(reader)) == len(SAID)

    def flush() -> None:
        extract(messages)
        Inbox.of(store, "ada").remove([m.id for m in messages])

    reader.retrieval.users.waiting = Interrupted(reader.waiting, flush, early)
    assert sorted(texts(found(reader))) == sorted(SAID)


def test_a_read_that_an_erase_cuts_off_is_made_again(
    reader: OnlineReader,
    accept: Accept,
    extract: Extract,
    store: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
):
    """An erase drops the version that is being read, also by one who asks about the past."""
    entry = change(store, extract(accept(*SAID))[0], text="we adopted a spaniel")
    as_of, query, fails = now_ms(), tables._query, cycle([True, False])

    def cut_off(*asked: Any) -> Any:
        if next(fails):
            raise OSError("Object at location data/x.lance not found")
        return query(*asked)

    monkeypatch.setattr(tables, "_query", cut_off)
    assert len(found(reader, as_of=as_of, neighbours=1)) == len(SAID)
    assert len(reader.history(entry.id, "ada").states) == 2
    assert len(reader.story(entry.id, "ada", 1).around) == 2


def test_the_id_of_a_message_is_known_without_its_user(
    memory: MemoryConfig, accept: Accept, extract: Extract, store: MemoryStore
):
    """While it waits, once it is extracted, and if only another memory took it in."""
    first, second, silent = accept(*SAID[:3])

    def got(message_id: str) -> Entry | None:
        return OnlineReader(memory).get(message_id)  # one that has seen nothing yet

    assert [e.text for m in (first, second) if (e := got(m.id))] == list(SAID[:2])
    old, new = extract([first, second], silent=[silent])
    Inbox.of(store, "ada").remove([first.id, second.id, silent.id])
    assert [e.id for m in (first, second) if (e := got(m.id))] == [old.id, new.id]
    assert (got(silent.id), got("0" * 32), got("' OR 1=1"), got("")) == (None,) * 4
    change(store, old, superseded_by=new.id)
    change(store, new, absorbed=old.sources)
    reader = OnlineReader(memory)
    assert [e.id for e in reader.written("ada", [first.id])] == [new.id]
    shown = reader.get(first.id)
    assert shown is not None
    assert shown.id == new.id
    assert reader.history(first.id, "ada").entry.id == new.id


def test_why_a_message_waits_is_shown_as_soon_as_it_is_known(
    reader: OnlineReader, accept: Accept, store: MemoryStore
):
    (message,) = accept(SAID[0])
    assert [e.reason for e in reader.list("ada", 9) if isinstance(e, WaitingEntry)] == [""]
    Inbox.of(store, "ada").mark([message.id], reason="bad reply")
    assert [e.reason for e in reader.list("ada", 9) if isinstance(e, WaitingEntry)] == ["bad reply"]
    shown = reader.get(message.id)
    assert isinstance(shown, WaitingEntry)
    assert shown.reason == "bad reply"


def test_under_way_nothing_that_was_accepted_is_ever_missing(
    memory: MemoryConfig, accept: Accept, extract: Extract, store: MemoryStore
):
    accepted: list[str] = []
    ended = threading.Event()

    def write() -> None:
        inbox = Inbox.of(store, "ada")
        try:
            for at in range(15):
                messages = accept(f"word{at} beagle", start=at)
                accepted.append(messages[0].content)
                extract(messages)
                inbox.remove([messages[0].id])
        finally:
            ended.set()

    def watch(reader: OnlineReader) -> int:
        seen = 0
        while not ended.is_set():
            before = list(accepted)
            now = texts(found(reader))
            assert set(before) <= set(now)
            assert len(now) == len(set(now))
            seen += 1
        return seen

    shared = OnlineReader(memory)
    with ThreadPoolExecutor(4) as threads:
        watching = [threads.submit(watch, reader) for reader in (shared, shared)]
        threads.submit(write).result(timeout=60)
        assert all(watcher.result(timeout=60) > 0 for watcher in watching)
    assert len(found(shared)) == 15


def test_a_plain_search_ranks_as_if_there_were_no_inbox(
    reader: OnlineReader, accept: Accept, extract: Extract, memory: MemoryConfig
):
    from lightmem_core import factory

    extract(accept(*SAID, user="bob"))
    Inbox.of(reader.store, "bob").remove([m.id for m in reader.waiting.messages("bob")])
    accept("the beagle sails", user="ada")
    query = Query("bob", "who has a beagle", 9)
    (plain,), (online,) = factory.retrieval(memory)([query]), reader.search([query])
    assert [(h.entry.id, h.score) for h in online] == [(h.entry.id, h.score) for h in plain]


# --- what may be found -------------------------------------------------------------------------


def test_a_search_may_be_bound_to_session_agent_cosine_and_filter(
    reader: OnlineReader, accept: Accept, extract: Extract
):
    extract(accept(SAID[0], session="s1", agent_id="guide"))
    extract(accept(SAID[1], session="s2"))
    assert texts(found(reader, session_id="s1")) == [SAID[0]]
    assert texts(found(reader, agent_id="guide")) == [SAID[0]]
    assert texts(found(reader, wanted=parse({"run_id": "s2"}))) == [SAID[1]]
    assert found(reader, wanted=parse({"user_id": "bob"})) == []
    assert texts(found(reader, "Ada: the roof leaks", threshold=0.99)) == [SAID[1]]
    assert len(found(reader, "Ada: the roof leaks", threshold=-1)) == 2


def test_what_has_expired_is_found_only_if_that_is_asked_for(
    reader: OnlineReader, accept: Accept, extract: Extract
):
    days = {"gone": "2020-01-01", "to come": "2999-12-31", "odd": "tomorrow", "odder": 7}
    for at, (text, day) in enumerate(days.items()):
        extract(accept(text, start=at, metadata=json.dumps({"expiration_date": day})))
    assert sorted(texts(found(reader))) == ["odd", "odder", "to come"]
    assert sorted(texts(found(reader, show_expired=True))) == sorted(days)
    assert texts(reader.list("ada", 9)) == ["odder", "odd", "to come"]
    assert len(reader.list("ada", 9, show_expired=True)) == 4


# --- neighbours --------------------------------------------------------------------------------


def test_neighbours_are_the_messages_around_the_sources_waiting_ones_too(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    stored = accept(*SAID)
    extract([stored[1]], silent=[stored[0], stored[2], stored[3]])
    Inbox.of(store, "ada").remove([m.id for m in stored])
    accept("elsewhere", start=2, session="s2")
    before = now_ms()
    accept("and it rains in", start=4)

    def near(reach: int, **more) -> list[str]:
        query = Query("ada", SAID[1], 1, neighbours=reach, session_id="s1", **more)
        return [m.content for m in reader.search([query])[0][0].neighbours]

    assert near(1) == list(SAID[:3])
    assert near(9) == [*SAID, "and it rains in"]
    assert near(9, as_of=before) == list(SAID)
    extract(accept("Porto", start=5), silent=accept("every day", start=6))
    assert near(9) == [*SAID, "and it rains in", "Porto", "every day"]
    assert near(9, as_of=before) == list(SAID)
    assert near(0) == []
    (waiting,) = reader.search([Query("ada", "it rains", 1, neighbours=1)])[0]
    assert [m.content for m in waiting.neighbours] == [SAID[3], "and it rains in", "Porto"]
    with pytest.raises(ValueError, match="neighbours must be from 0 to 50"):
        Query("ada", "x", neighbours=51)


# --- one by one --------------------------------------------------------------------------------


def test_pages_hold_every_entry_once_newest_first(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    messages = accept(*(f"word{at}" for at in range(7)))
    entries = extract(messages[:4])
    Inbox.of(store, "ada").remove([m.id for m in messages[:4]])
    pages, after = [], ""
    while page := reader.list("ada", 2, after):
        pages += texts(page)
        after = page[-1].id
        if len(pages) == 2:  # meanwhile the last of the page is extracted,
            extract([messages[5]])
            Inbox.of(store, "ada").remove([messages[5].id])
        if len(pages) == 4:  # and later one is deleted
            change(store, entries[3], superseded_by=DELETED)
    assert pages == [f"word{at}" for at in reversed(range(7))]
    assert len(reader.list("ada", 99)) == 6
    for stranger in ("nothing", "' OR 1=1"):
        with pytest.raises(ValueError, match="begin with the first page"):
            reader.list("ada", 2, stranger)


def next_page(reader: OnlineReader, how: str, after: str) -> list[str]:
    if how == "list":
        return texts(reader.list("ada", 3, after))
    return texts(reader.time_line("ada", Asked(3, after)).page)


@pytest.mark.parametrize("how", ["list", "time line"])
@pytest.mark.parametrize("facts", [True, False])
def test_a_page_goes_on_behind_what_waited_whatever_came_of_it(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore, how, facts
):
    messages = accept(*(f"word{at}" for at in range(7)))
    assert next_page(reader, how, "") == ["word6", "word5", "word4"]
    silent = [] if facts else [messages[4]]
    extract([m for m in messages if m not in silent], silent)
    Inbox.of(store, "ada").remove([m.id for m in messages])
    assert next_page(reader, how, messages[4].id) == ["word3", "word2", "word1"]


def test_an_entry_is_read_by_its_whole_id_and_only_as_its_users(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    (mine,) = extract(accept(SAID[0]))
    (other,) = extract(accept(SAID[1], user="bob"))
    found(reader)
    for user in (None, "ada"):
        got = reader.get(mine.id, user)
        assert got is not None
        assert got.text == SAID[0]
    assert reader.get(mine.id[:8], "ada") is None
    assert reader.get(other.id, "ada") is None
    assert reader.get("' OR '1'='1") is None
    gone = change(store, mine, superseded_by=DELETED)
    got = reader.get(gone.id)
    assert got is not None
    assert got.deleted
    for read in (reader.history, reader.provenance):
        with pytest.raises(KeyError, match="the user has no memory"):
            read(other.id, "ada")


def test_a_history_goes_from_the_first_text_to_the_deletion(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    (entry,) = extract(accept(SAID[0]))
    entry = change(store, entry, text="a beagle and a poodle")
    change(store, entry, superseded_by=DELETED)
    states = reader.history(entry.id, "ada").states
    assert texts(states) == [SAID[0], entry.text, entry.text]
    assert [state.deleted for state in states] == [False, False, True]


def test_provenance_has_the_messages_and_what_was_replaced(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    messages = accept(*SAID[:2])
    old, new = extract(messages)
    change(store, old, superseded_by=new.id)
    found_new, found_old = (reader.provenance(e.id, "ada") for e in (new, old))
    assert [m.content for m in found_new.messages] == [SAID[1]]
    assert [e.id for e in found_new.replaced] == [old.id]
    assert found_old.successor is not None
    assert found_old.successor.id == new.id
    waiting = accept("it rains", start=5)[0]
    assert [m.id for m in reader.provenance(waiting.id, "ada").messages] == [waiting.id]


# --- the store as a whole ----------------------------------------------------------------------


def test_users_are_paged_in_order_with_a_prefix(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    extract(accept("x", user="@acme/ada"))
    for user in ("@acme/bob", "@acme-2/eve", "zoe", "Ada"):
        accept("x", user=user)
    everyone = sorted(["@acme/ada", "@acme/bob", "@acme-2/eve", "zoe", "Ada"])
    assert reader.users(9) == everyone
    paged = reader.users(2)
    while page := reader.users(2, after=paged[-1]):
        paged += page
    assert paged == everyone
    assert reader.users(9, prefix="@acme/") == ["@acme/ada", "@acme/bob"]
    assert reader.users(9, after="@acme/ada", prefix="@acme/") == ["@acme/bob"]
    assert reader.users(9, after="zoe", prefix="@acme/") == []
    erase_rows(store, "@acme/ada")
    assert "@acme/ada" not in reader.users(9)


def test_a_context_holds_what_fits(reader: OnlineReader, accept: Accept):
    accept(*SAID)
    whole = reader.context(Query("ada", "beagle", 99), 500)
    assert len(whole.hits) == len(SAID)
    small = reader.context(Query("ada", "beagle", 99), whole.tokens - 1)
    assert small.tokens < whole.tokens
    assert SAID[0] in small.text


def test_runs_are_those_of_the_ledger(reader: OnlineReader, store: MemoryStore):
    assert reader.runs() == []
    for at in range(1, 4):
        store.runs.write(Run(f"sleep-{at}", "sleep", "done", at + 7))
    store.runs.write(Run("backfill-1", "backfill", "done", 7))
    assert [run.id for run in reader.runs(limit=2)] == ["sleep-3", "sleep-2"]
    assert [run.id for run in reader.runs(after="sleep-2")] == ["sleep-1", "backfill-1"]
    assert [run.id for run in reader.runs("backfill")] == ["backfill-1"]
    assert [run and run.id for run in map(reader.run, ("sleep-1", "x"))] == ["sleep-1", None]
    with pytest.raises(RequestError, match="no run 'x'"):
        reader.runs(after="x")


def test_an_erased_user_is_nowhere(
    reader: OnlineReader, accept: Accept, extract: Extract, store: MemoryStore
):
    (entry, *_) = extract(accept(*SAID))
    accept("it rains", start=9)
    assert len(found(reader)) == 5
    assert reader.get(entry.id) is not None
    erase_rows(store, "ada")
    assert found(reader) == []
    assert reader.get(entry.id) is None
    assert reader.list("ada", 9) == []
    assert reader.users(9) == []
