"""Each message and each entry is stored once, however the input is cut, ordered or repeated."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from random import Random
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.table import Table

from lightmem_core import factory, load_config
from lightmem_core.config import MemoryConfig, StoreConfig
from lightmem_core.history import UNPLACED, ordered_history
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.versions import entries_as_of, history
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, History, Message, Source

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
MODEL = VectorModel("hash-16", 16)
STAMPS = ("run_id", "stored_at")
USERS = ["ada", "bob", "o'neil"]
WRITERS = 4
PATIENCE_S = 60


class Dead(Exception):
    """The writer died."""


class DeadTable:
    """A table whose writer dies before it commits."""

    def __init__(self, table: Table):
        self.schema = table.schema

    def __getattr__(self, name: str) -> None:
        raise Dead


def contents(shard: Shard) -> list[list[str]]:
    """The rows of a shard's tables, id by id, but for which run wrote them and when."""
    found = []
    for table in (shard.entries, shard.messages):
        rows = table.to_arrow().drop_columns(STAMPS).sort_by("id").to_pylist()
        found.append([repr(row) for row in rows])
    return found


# --- any order, any cut, any repeats, any crash ------------------------------------------------


@pytest.fixture(scope="module")
def rows(
    message: Callable[..., Message],
    entry: Callable[..., Entry],
    axis: Callable[..., np.ndarray],
) -> list[Extracted]:
    """Buffers of some users: messages with one entry, with two and without any."""

    def buffer(user: str, number: int) -> Extracted:
        said = [
            message(f"{user} {number} {at}", 3 * number + at, user_id=user, state="stored")
            for at in range(3)
        ]
        entries = [
            entry(f"fact {of} of {m.content}", m.position, user_id=user, ordinal=of)
            for m, count in zip(said, (1, 2, 0), strict=True)
            for of in range(count)
        ]
        placed = [
            replace(e, vector=axis(at), sources=(Source("s1", e.position, said[0].id),))
            for at, e in enumerate(entries)
        ]
        return Extracted(user, tuple(said), tuple(placed))

    return [buffer(user, number) for user in USERS for number in range(3)]


@pytest.fixture(scope="module")
def new_shard(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Shard]:
    def make() -> Shard:
        uri = str(tmp_path_factory.mktemp("store"))
        return MemoryStore.create(StoreConfig(uri=uri), MODEL).shards[0]

    return make


@pytest.fixture(scope="module")
def undisturbed(rows: list[Extracted], new_shard: Callable[[], Shard]) -> list[list[str]]:
    shard = new_shard()
    shard.insert(to_table(rows, Extracted), "run-1")
    return contents(shard)


def insert_with_crashes(shard: Shard, batch: Sequence[Extracted], crash: str) -> None:
    """Insert a batch as a committer that dies at some place and is restarted."""
    table = to_table(batch, Extracted)
    dead = {crash: DeadTable(getattr(shard, crash))} if crash in ("entries", "messages") else {}
    if dead:
        with pytest.raises(Dead):
            replace(shard, **dead).insert(table, "run-1")
    if crash == "after":
        shard.insert(table, "run-1")
    shard.insert(table, "run-1")


def batches(rows: Sequence[Extracted], random: Random) -> Iterator[Sequence[Extracted]]:
    while rows:
        size = random.randint(1, 8)
        yield rows[:size]
        rows = rows[size:]


@pytest.mark.parametrize("seed", range(6))
def test_any_order_cut_repeats_and_crashes_give_the_same_store(
    rows: list[Extracted],
    new_shard: Callable[[], Shard],
    undisturbed: list[list[str]],
    seed: int,
):
    random = Random(seed)
    given_rows = rows + random.choices(rows, k=4)
    random.shuffle(given_rows)
    shard = new_shard()
    for batch in batches(given_rows, random):
        insert_with_crashes(shard, batch, random.choice(["entries", "messages", "after", "none"]))
        if random.random() < 0.3:
            shard.compact()
    assert contents(shard) == undisturbed


def test_parallel_buffers_of_one_user_in_one_batch_are_stored_once(
    rows: list[Extracted], new_shard: Callable[[], Shard], undisturbed: list[list[str]]
):
    shard = new_shard()
    shard.insert(to_table([*rows, *rows[::-1]], Extracted), "run-1")
    assert contents(shard) == undisturbed


@pytest.mark.parametrize("seed", range(3))
def test_writers_at_once_store_each_row_once_and_count_all_others_as_repeats(
    rows: list[Extracted], store_config: StoreConfig, undisturbed: list[list[str]], seed: int
):
    """All begin together, each with all rows in an order and batches of its own."""
    MemoryStore.create(store_config, MODEL)
    together = Barrier(WRITERS)

    def write(number: int) -> int:
        random = Random(f"{seed} {number}")
        shard = MemoryStore.open(store_config).shards[0]
        tables = [
            to_table(batch, Extracted) for batch in batches(random.sample(rows, len(rows)), random)
        ]
        together.wait(PATIENCE_S)
        return sum(shard.insert(table, f"run-{number}") for table in tables)

    with ThreadPoolExecutor(WRITERS) as writers:
        repeats = sum(writers.map(write, range(WRITERS)))
    assert contents(MemoryStore.open(store_config).shards[0]) == undisturbed
    assert repeats == (WRITERS - 1) * sum(len(row.messages) for row in rows)


@pytest.mark.parametrize("order", [1, -1])
def test_of_a_message_that_failed_and_did_not_the_one_that_did_not_is_kept(
    message: Callable[..., Message], new_shard: Callable[[], Shard], order: int
):
    failed = message("It rains.", state="quarantined", reason="timeout")
    outcomes = [failed, replace(failed, state="no_facts", reason="")][::order]
    together = [Extracted("ada", (m,), ()) for m in outcomes]
    for parts in ([together], [[row] for row in together]):
        shard = new_shard()
        for part in parts:
            shard.insert(to_table(part, Extracted), "run-1")
        (stored,) = shard.messages.to_arrow().to_pylist()
        assert stored["state"] == "no_facts"


# --- updates -----------------------------------------------------------------------------------


@pytest.fixture
def known(rows: list[Extracted], store: MemoryStore) -> tuple[Entry, ...]:
    store.shards[0].insert(to_table(rows[:1], Extracted), "run-1")
    return rows[0].entries


def changed(entry: Entry, gen: int, run: str) -> Entry:
    return replace(entry, topic=run, gen=gen, changed_by=run, changed_at=2**42 + gen)


def test_an_update_that_names_an_entry_twice_writes_the_newest(
    store: MemoryStore, known: tuple[Entry, ...]
):
    twice = [changed(known[0], 1, "a"), changed(known[0], 2, "b"), changed(known[0], 2, "c")]
    assert store.shards[0].update(to_table(twice, Entry)) == 0
    found = history(store, known[0].id)
    assert [(s.gen, s.topic) for s in found.states] == [(0, ""), (2, "b")]
    assert store.shards[0].versions.count_rows() == 1


def test_an_update_that_is_done_again_changes_nothing(store: MemoryStore, known: tuple[Entry, ...]):
    shard = store.shards[0]
    update = to_table([changed(e, 1, "sleep") for e in known], Entry)
    assert shard.update(update) == 0
    before = contents(shard), shard.versions.to_arrow()
    assert shard.update(update) == len(known)
    assert (contents(shard), shard.versions.to_arrow()) == before


def test_an_update_cut_off_after_the_versions_is_not_seen(
    store: MemoryStore, known: tuple[Entry, ...]
):
    """Nothing that is read changes, and the next update is told as it was."""
    shard = store.shards[0]
    before = contents(shard)
    torn = to_table([changed(e, 1, "dead") for e in known], Entry).cast(shard.entries.schema)
    shard._keep_versions(torn)
    assert shard.versions.count_rows() == len(known)
    assert contents(shard) == before
    assert history(store, known[0].id).versions == []
    late = entries_as_of(shard, "ada", 2**43)
    assert [(e.id, e.gen) for e in late] == [(e.id, 0) for e in shard.entries_of(["ada"])]
    assert shard.update(to_table([changed(e, 1, "alive") for e in known], Entry)) == 0
    (version,) = history(store, known[0].id).versions
    assert (version.entry.gen, version.replaced_by) == (0, "alive")
    assert shard.versions.count_rows() == len(known)


# --- the input in parts ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory() -> MemoryConfig:
    return load_config(FAKES).memory.model_copy(update={"buffer_tokens": 12})


def stages(memory: MemoryConfig, histories: Iterable[History]) -> list[Extracted]:
    rows: list = list(histories)
    for stage in factory.stages(memory):
        rows = stage(rows)
    return rows


def run(memory: MemoryConfig, shard: Shard, messages: Sequence[Message], name: str) -> None:
    """A backfill in small: what is stored is not admitted, the rest is stored in one commit."""
    by_user = sorted(messages, key=lambda m: m.user_id)
    groups = groupby(by_user, lambda m: m.user_id)
    histories = [ordered_history(group) for _, group in groups]
    known = shard.known([h.user_id for h in histories])
    admitted = [
        replace(h, messages=tuple(m for m in h.messages if m.id not in known)) for h in histories
    ]
    shard.insert(to_table(stages(memory, admitted), Extracted), name)


def spoken(sessions: Sequence[tuple[str, int, bool]]) -> list[list[Message]]:
    """Sessions as a source gives them: of a user, so many messages, with positions or without."""
    return [
        [
            Message(
                user_id=user,
                session_id=f"s{number}",
                position=at if placed else UNPLACED,
                role="user",
                content=f"{user} says {at} in {number}",
                said_at=1_000 * number + at,
                source=f"part.jsonl:{100 * number + at}",
            )
            for at in range(length)
        ]
        for number, (user, length, placed) in enumerate(sessions)
    ]


def check_complete(shard: Shard, messages: Sequence[Message]) -> None:
    """Every message is stored once, and every entry's sources are messages of its user."""
    stored = shard.messages.to_arrow().to_pylist()
    assert sorted(row["content"] for row in stored) == sorted(m.content for m in messages)
    owner = {row["id"]: row["user_id"] for row in stored}
    entries = shard.entries.to_arrow().to_pylist()
    assert len({row["id"] for row in entries}) == len(entries)
    sources = [(row["user_id"], s["message_id"]) for row in entries for s in row["sources"]]
    assert all(owner[id] == user for user, id in sources)
    assert {id for _, id in sources} == {row["id"] for row in stored if row["state"] == "stored"}


SESSIONS = st.lists(
    st.tuples(st.sampled_from(USERS), st.integers(1, 5), st.booleans()), min_size=2, max_size=7
)


@settings(max_examples=6, deadline=None)
@given(sessions=SESSIONS, random=st.randoms(use_true_random=False))
def test_runs_cut_at_session_ends_lose_and_double_nothing(
    memory: MemoryConfig,
    new_shard_of_384: Callable[[], Shard],
    sessions: list[tuple[str, int, bool]],
    random: Random,
):
    """The verbatim generator reads each message alone, so the cut does not even show."""
    read = spoken(sessions)
    everything = [m for session in read for m in session]
    whole, parts = new_shard_of_384(), new_shard_of_384()
    run(memory, whole, everything, "run-1")
    for number, session in enumerate(random.sample(read, len(read))):
        repeated = random.choice(read)
        run(memory, parts, [*repeated, *session], f"run-{number}")
    check_complete(parts, everything)
    assert ids_and_texts(parts) == ids_and_texts(whole)


@pytest.fixture(scope="module")
def new_shard_of_384(
    tmp_path_factory: pytest.TempPathFactory, memory: MemoryConfig
) -> Callable[[], Shard]:
    model = VectorModel.of(factory.embedder(memory))

    def make() -> Shard:
        return MemoryStore.create(StoreConfig(uri=str(tmp_path_factory.mktemp("s"))), model).shards[
            0
        ]

    return make


def ids_and_texts(shard: Shard) -> list[list[tuple]]:
    entries = shard.entries.to_arrow().to_pylist()
    messages = shard.messages.to_arrow().to_pylist()
    return [
        sorted((row["id"], row["text"], row["position"], row["user_id"]) for row in entries),
        sorted((row["id"], row["content"], row["position"], row["state"]) for row in messages),
    ]
