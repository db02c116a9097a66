"""What is accepted online is stored once, as the batch would, whatever happens in between."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lightmem_core import factory, load_config
from lightmem_core.config import Config
from lightmem_core.errors import LLMUnavailableError, NotFoundError, StoreError
from lightmem_core.formats import fields
from lightmem_core.history import ordered_history
from lightmem_core.long_term import tables
from lightmem_core.long_term.lease import Leases
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online import inbox as inbox_module
from lightmem_core.online import writer as writer_module
from lightmem_core.online.recalled import sessions_of
from lightmem_core.online.service import Accepted, Incoming
from lightmem_core.online.sessions import posted
from lightmem_core.online.writer import OnlineWriter
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import Buffer, Entry, Extracted, Fact, Message

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"


class Dead(BaseException):
    """The process died."""


class PairGenerator:
    """A fact of every two messages of a buffer: what it finds depends on which stand together."""

    name = "pairs"
    gone = False
    bad = ""

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact] | str]:
        if PairGenerator.gone:
            raise LLMUnavailableError("the model is gone")
        return [self._facts(buffer.messages) for buffer in buffers]

    def _facts(self, messages: Sequence[Message]) -> list[Fact] | str:
        texts = [m.content for m in messages]
        if PairGenerator.bad and any(PairGenerator.bad in text for text in texts):
            return "bad reply"
        return [Fact(" + ".join(texts[at : at + 2]), (at,)) for at in range(0, len(texts), 2)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(PairGenerator, "gone", False)
    monkeypatch.setattr(PairGenerator, "bad", "")
    config = load_config(FAKES, uri=str(tmp_path / "store"), shards=2)
    generator = config.memory.generator.model_copy(update={"use": f"{__name__}:PairGenerator"})
    memory = config.memory.model_copy(update={"generator": generator, "buffer_tokens": 12})
    return config.model_copy(update={"memory": memory})


@pytest.fixture
def opened(config: Config) -> Iterator[Callable[[], OnlineWriter]]:
    """Open a writer; the one before is closed, or dead."""
    writers: list[OnlineWriter] = []

    def make() -> OnlineWriter:
        for writer in writers:
            writer.shared.hold.release()
        writers.append(OnlineWriter(config, wait_s=0))
        return writers[-1]

    yield make
    for writer in writers:
        writer._stop.set()
        writer.shared.hold.release()


@pytest.fixture
def writer(opened: Callable[[], OnlineWriter]) -> OnlineWriter:
    return opened()


def said(number: int, first: int = 0, **other) -> list[Incoming]:
    return [
        Incoming("user", f"it is {at} o'clock", 1_000 + at, name="Ada", **other)
        for at in range(first, first + number)
    ]


def stored(store: MemoryStore, user: str = "ada") -> tuple[list[Entry], list[Message]]:
    shard = store.shard_for(user)
    entries = shard.entries_of([user], tombstones=True)
    rows = tables.read(shard.messages, tables.of_users([user]))
    return entries, sorted(from_table(rows, Message), key=lambda m: m.position)


def of_batch(config: Config, messages: Sequence[Incoming], user: str = "ada") -> list[Extracted]:
    read = [  # as the format `messages` reads them
        Message(
            user,
            "s1",
            -1,
            m.role,
            m.content,
            m.said_at or 0,
            m.name,
            metadata=fields.metadata(m.metadata),
        )
        for m in messages
    ]
    rows: list = [ordered_history(read)]
    for stage in factory.stages(config.memory):
        rows = stage(rows)
    return rows


def told(entries: Sequence[Entry]) -> list[tuple]:
    return sorted((e.id, e.text, e.said_at, e.metadata, e.sources) for e in entries)


# --- the law -----------------------------------------------------------------------------------


def test_online_writes_give_what_the_batch_gives(config: Config, writer: OnlineWriter):
    messages = said(9, metadata='{"b": 1, "a": "x"}')
    for start in range(0, 9, 2):
        writer.add("ada", "s1", messages[: start + 2])
    assert writer.flush("ada") == 6
    entries, rows = stored(writer.shared.store)
    expected = of_batch(config, messages)
    wanted = [entry for row in expected for entry in row.entries]
    assert told(entries) == told(wanted)
    vectors = {e.id: e.vector for e in wanted}
    assert all(np.array_equal(e.vector, vectors[e.id]) for e in entries)  # type: ignore[arg-type]
    said_in_batch = [m for row in expected for m in row.messages]
    assert [(m.id, m.position, m.state, m.compressed_tokens, m.segment_id) for m in rows] == [
        (m.id, m.position, m.state, m.compressed_tokens, m.segment_id) for m in said_in_batch
    ]


@contextmanager
def dying_at(monkeypatch: pytest.MonkeyPatch, step: int, before: bool) -> Iterator[None]:
    """Die at the commit of that number, before it is made or right after it."""
    left = [step]

    def mortal(commit: Callable) -> Callable:
        def made(table, run):
            left[0] -= 1
            if left[0] == 0 and before:
                raise Dead
            result = commit(table, run)
            if left[0] == 0:
                raise Dead
            return result

        return made

    with monkeypatch.context() as patch:
        dying = mortal(tables.committed)
        for module in (tables, inbox_module):
            patch.setattr(module, "committed", dying)
        yield


@pytest.mark.parametrize("before", [True, False])
def test_a_death_at_any_commit_loses_and_doubles_nothing(
    config: Config,
    opened: Callable[[], OnlineWriter],
    monkeypatch: pytest.MonkeyPatch,
    before: bool,
):
    """A flush makes four commits: the mark, the entries, the messages, and out of the inbox. More
    messages come before the next process goes on with it."""
    for step in range(1, 6):
        user = f"user {step}"
        writer = opened()
        writer.add(user, "s1", said(5))
        died = False
        with dying_at(monkeypatch, step, before):
            try:
                writer.flush(user)
            except Dead:
                died = True
        assert died == (step < 5)
        writer = opened()
        assert {a.state for a in writer.add(user, "s1", said(7))} == {"accepted", "duplicate"}
        writer.flush(user)
        entries, rows = stored(writer.shared.store, user)
        assert [m.position for m in rows] == list(range(7))
        parts = [[*part] for part in (said(5), said(2, 5))]
        if died and step == 1 and before:  # nothing had begun
            parts = [said(7)]
        wanted = [e for part in parts for row in of_batch(config, part, user) for e in row.entries]
        assert sorted(e.text for e in entries) == sorted(e.text for e in wanted)
        assert writer.status().waiting == 0


def test_a_death_in_an_add_leaves_all_or_nothing(
    opened: Callable[[], OnlineWriter], monkeypatch: pytest.MonkeyPatch
):
    for before in (True, False):
        writer = opened()
        writer.shared.inbox_for("ada").accept([])
        with dying_at(monkeypatch, 1, before), pytest.raises(Dead):
            writer.add("ada", f"{before}", said(3))
        states = [a.state for a in opened().add("ada", f"{before}", said(3))]
        assert states == (["accepted"] * 3 if before else ["duplicate"] * 3)


def test_what_another_writer_began_is_settled_though_its_generator_is_another(
    config: Config, opened: Callable[[], OnlineWriter], monkeypatch: pytest.MonkeyPatch
):
    """Entries that were stored stay the only ones of their messages."""
    writer = opened()
    writer.add("ada", "s1", said(4))
    with dying_at(monkeypatch, 2, before=False), pytest.raises(Dead):
        writer.flush("ada")
    (before, _) = stored(writer.shared.store)
    monkeypatch.setattr(PairGenerator, "_facts", lambda self, messages: [Fact("other", (0,))])
    assert opened().flush("ada") == 0
    entries, rows = stored(writer.shared.store)
    assert (told(entries), len(entries)) == (told(before), 3)
    assert [m.state for m in rows] == ["stored", "no_facts", "stored", "stored"]


# --- many at once ------------------------------------------------------------------------------


def test_requests_that_come_together_are_one_commit_a_shard(writer: OnlineWriter):
    users = [f"user {n}" for n in range(8)]
    writer.add_all([posted(user, "s1", said(1)) for user in users])
    before = [inbox.version for inbox in writer.shared.inboxes]
    taken = writer.add_all([posted(user, "s1", said(2)) for user in (*users, *users)])
    assert [[a.state for a in one] for one in taken] == (
        [["duplicate", "accepted"]] * 8 + [["duplicate"] * 2] * 8
    )
    assert [inbox.version for inbox in writer.shared.inboxes] == [v + 1 for v in before]


def test_threads_that_add_and_flush_at_once_store_everything_once(writer: OnlineWriter):
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for at in range(4):
                turn = [Incoming("user", f"{number % 3} says {at}", at, position=at)]
                writer.add(f"user {number % 3}", "s1", turn)
                if number == at:
                    writer.flush(f"user {number % 3}")
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for user in range(3):
        writer.flush(f"user {user}")
        entries, rows = stored(writer.shared.store, f"user {user}")
        assert [m.content for m in rows] == [f"{user} says {at}" for at in range(4)]
        sources = [s.message_id for e in entries for s in e.sources]
        assert len(sources) == len(set(sources))


def test_only_one_process_writes_online(config: Config, writer: OnlineWriter):
    with pytest.raises(StoreError, match="the online writer is under way"):
        OnlineWriter(config, wait_s=0)
    writer.close()
    with pytest.raises(StoreError, match="closed"):
        writer.add("ada", "s1", said(1))
    again = OnlineWriter(config, wait_s=0)
    again.close()
    runs = [(run.kind, run.status) for run in again.shared.store.runs.latest()]
    assert runs == [("online", "done")] * 2


def test_words_that_are_sent_again_are_stored_once_also_after_a_death_and_said_again_twice(
    config: Config, opened: Callable[[], OnlineWriter]
):
    serve = config.serve.model_copy(update={"repeat_within_s": 4.0})
    running = [Incoming("user", "I went running today")]
    states = []
    for wait_s in (0, 0, 4.1, 0):
        time.sleep(wait_s)
        writer = opened()
        writer.shared.config = config.model_copy(update={"serve": serve})
        states.append(writer.add("ada", "default", running)[0].state)
        writer.flush("ada")
    assert states == ["accepted", "duplicate", "accepted", "duplicate"]
    assert [m.content for m in stored(writer.shared.store)[1]] == ["I went running today"] * 2


def test_a_session_of_any_length_is_read_in_part(writer: OnlineWriter):
    ids = [a.message_id for a in writer.add("ada", "s1", said(200))]
    writer.flush("ada")
    shard, inbox = writer.shared.store.shard_for("ada"), writer.shared.inbox_for("ada")
    asked = [*said(1, 7), Incoming("user", "it is new"), Incoming("user", "so is this")]
    request = posted("ada", "s1", asked)
    (session,) = sessions_of(shard, inbox, [request], tables.now_ms(), 1_000).values()
    assert sorted(session.by_id) == sorted([ids[7], *ids[-2:]])
    taken = session.take(request.messages, tables.now_ms())
    assert [(a.state, a.position) for _, a in taken] == [
        ("duplicate", 7),
        ("accepted", 200),
        ("accepted", 201),
    ]


def test_no_more_than_may_wait_is_taken_in(config: Config, writer: OnlineWriter):
    limits = config.serve.limits.model_copy(update={"waiting": 3})
    serve = config.serve.model_copy(update={"limits": limits})
    writer.shared.config = config.model_copy(update={"serve": serve})
    writer.add("ada", "s1", said(3))
    with pytest.raises(StoreError, match="3 messages wait"):
        writer.add("bob", "s1", said(1))
    writer.flush("ada")
    assert writer.add("bob", "s1", said(1))[0].state == "accepted"


# --- in the background -------------------------------------------------------------------------


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_user_is_extracted_once_a_buffer_is_full_or_the_time_is_over(
    writer: OnlineWriter, monkeypatch: pytest.MonkeyPatch
):
    writer.shared.backlogs.after_ms = 3_600_000
    writer.start()
    writer.add("ada", "s1", said(2))
    writer.add("bob", "s1", said(3))  # of four tokens each
    until(lambda: writer.status().users == 1)
    assert writer.shared.backlogs.all().keys() == {"ada"}
    writer.shared.backlogs.after_ms = 1
    until(lambda: writer.status().waiting == 0)
    assert len(stored(writer.shared.store)[1]) == 2


def test_one_whose_extraction_fails_waits_on_with_the_reason(
    writer: OnlineWriter, monkeypatch: pytest.MonkeyPatch
):
    """The others are stored, those of its buffer and of other users too."""
    monkeypatch.setattr(PairGenerator, "bad", "7 o'clock")
    for user in ("ada", "bob"):
        writer.add(user, "s1", said(7 if user == "bob" else 9))
    writer.flushing(["ada", "bob"])
    waiting = writer.shared.inbox_for("ada").waiting("ada")
    assert [(m.position, m.reason) for m in waiting] == [(7, "bad reply")]
    assert (writer.status().failing, writer.status().users) == (1, 1)
    assert writer.shared.backlogs.due(tables.now_ms(), 9) == []
    later = tables.now_ms() + 31_000
    assert writer.shared.backlogs.due(later, 9) == ["ada"]
    writer.flush("ada")
    assert writer.shared.backlogs.due(later + 20_000, 9) == []  # it waits for longer
    monkeypatch.setattr(PairGenerator, "bad", "")
    writer.flush("ada")
    assert [m.state for m in stored(writer.shared.store)[1]].count("quarantined") == 0
    assert len(stored(writer.shared.store)[1]) == 9


def test_a_message_that_failed_keeps_no_other_one_waiting(
    writer: OnlineWriter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PairGenerator, "bad", "1 o'clock")
    writer.add("ada", "s1", said(2))
    writer.flush("ada")
    now = tables.now_ms()
    writer.add("ada", "s1", [Incoming("user", "I like tea", infer=False)])
    assert writer.shared.backlogs.due(now, 9) == ["ada"]
    calls: list[list[str]] = []
    generate = PairGenerator.generate

    def noted(self: PairGenerator, buffers: Sequence[Buffer]) -> list[list[Fact] | str]:
        calls.extend([m.content for m in buffer.messages] for buffer in buffers)
        return generate(self, buffers)

    monkeypatch.setattr(PairGenerator, "generate", noted)
    writer.flushing(["ada"])
    assert calls == []  # the one that failed is not due
    assert "I like tea" in [e.text for e in stored(writer.shared.store)[0]]
    writer.add("ada", "s1", said(3))
    writer.flush("ada")
    assert sorted(calls) == [["it is 1 o'clock"], ["it is 2 o'clock"]]  # it is tried alone
    assert [m.content for m in writer.shared.inbox_for("ada").waiting("ada")] == ["it is 1 o'clock"]


def test_where_every_message_fails_there_are_not_many_more_calls(
    writer: OnlineWriter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PairGenerator, "bad", "o'clock")
    tried: list[int] = []
    facts = PairGenerator._facts

    def noted(self: PairGenerator, messages: Sequence[Message]) -> list[Fact] | str:
        tried.append(len(messages))
        return facts(self, messages)

    monkeypatch.setattr(PairGenerator, "_facts", noted)
    writer.add("ada", "s1", said(30))
    writer.flush("ada")
    assert writer.status().waiting == 30
    assert len(tried) <= 3 * 30
    assert sum(tried) <= 4 * 30


def test_a_model_that_is_gone_is_nobodys_fault(
    writer: OnlineWriter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer_module, "PAUSE_MS", 20)
    monkeypatch.setattr(PairGenerator, "gone", True)
    writer.add("ada", "s1", said(9))
    writer.start()
    until(lambda: "the model is gone" in writer.status().trouble)
    (row, *_) = writer.shared.inbox_for("ada").rows(["ada"])
    assert (row.attempts, row.reason) == (0, "")
    monkeypatch.setattr(PairGenerator, "gone", False)
    until(lambda: writer.status().waiting == 0 and not writer.status().trouble)


def test_what_need_not_infer_is_an_entry_word_for_word_at_once(writer: OnlineWriter):
    writer.add("ada", "s1", said(1))
    writer.add("ada", "s1", [Incoming("user", "I like  tea!", infer=False, metadata='{"a":1}')])
    assert writer.shared.backlogs.due(tables.now_ms(), 9) == ["ada"]
    writer.flush("ada")
    entries, _ = stored(writer.shared.store)
    assert [(e.text, e.writer, e.metadata) for e in entries] == [
        ("it is 0 o'clock", "pairs", ""),
        ("I like  tea!", "verbatim", '{"a": 1}'),
    ]


def test_what_the_batch_stores_meanwhile_leaves_the_inbox(config: Config, writer: OnlineWriter):
    writer.add("ada", "s1", said(4))
    rows = of_batch(config, said(3))
    writer.shared.store.shard_for("ada").insert(to_table(rows, Extracted), "backfill-1")
    assert writer.flush("ada") == 1
    entries, messages = stored(writer.shared.store)
    assert len(messages) == 4
    assert sorted(e.text for e in entries) == [
        "it is 0 o'clock + it is 1 o'clock",
        "it is 2 o'clock",
        "it is 3 o'clock",
    ]


def test_a_lease_that_is_lost_during_a_commit_leaves_it_unacknowledged(
    opened: Callable[[], OnlineWriter], monkeypatch: pytest.MonkeyPatch
):
    writer = opened()
    accept = inbox_module.Inbox.accept

    def stalled(self: inbox_module.Inbox, rows: Sequence) -> None:
        accept(self, rows)
        assert writer.shared.hold._hold is not None
        writer.shared.hold._hold.until = 0

    with monkeypatch.context() as patch:
        patch.setattr(inbox_module.Inbox, "accept", stalled)
        with pytest.raises(StoreError, match="lost its hold"):
            writer.add("ada", "s1", said(2))
    assert {a.state for a in opened().add("ada", "s1", said(2))} == {"duplicate"}


def test_only_a_commit_counts_as_a_write(writer: OnlineWriter):
    before = writer.shared.last_write_at = 1
    assert writer.flush("ada") == 0
    with pytest.raises(NotFoundError):
        writer.delete("ada", "0" * 32)
    assert writer.status().last_write_at == before
    writer.add("ada", "s1", said(1))
    assert writer.status().last_write_at > before


def test_a_lost_lease_stops_every_write(writer: OnlineWriter):
    accepted: list[Accepted] = writer.add("ada", "s1", said(1))
    assert accepted[0].state == "accepted"
    assert writer.shared.hold._hold is not None
    writer.shared.hold._hold.lost = True
    for write in (
        lambda: writer.add("ada", "s1", said(2)),
        lambda: writer.flush("ada"),
        lambda: writer.check(),
    ):
        with pytest.raises(StoreError, match="lost its hold"):
            write()
    assert Leases(writer.shared.store.database)._row("the online writer") is not None
