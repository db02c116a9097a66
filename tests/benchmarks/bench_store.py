"""What the store costs: loading it, and searching one user's memories among many users'.

    make bench-store

Stores of 1,000, 100,000 and 1,000,000 entries, 100 a user, in 16 shards. Searches are whole ones
(words and vectors, ranked), less the embedding of the query. Cold: the user's entries are read;
warm: they are in the cache. The largest store is searched again after 1,000 appends of 20 entries,
and while another process loads. CPU is of this process with all its threads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from measure import environment
from synthetic import DIM, extracted, texts, topic_vectors

from lightmem_core.config import StoreConfig
from lightmem_core.language import WordModel
from lightmem_core.long_term.newest import NewestVersion
from lightmem_core.long_term.ranking import UserIndex
from lightmem_core.long_term.retrieve import Query, Retrieval
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.long_term.tables import of_users
from lightmem_core.schema import from_table
from lightmem_core.types import Entry

T = TypeVar("T")

EACH = 100  # entries of a user
BATCH = 5_000  # entries that a committer writes at once
APPENDED = 20
SEARCHES = 300
REOPENED = 5
MODEL = VectorModel("synthetic", DIM)


class Given:
    """An embedder that has the vector already."""

    dim, name = MODEL.dim, MODEL.name

    def __init__(self) -> None:
        self.vectors = topic_vectors(np.random.default_rng(5), 64, 64)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors[: len(texts)]


@dataclass
class Times:
    """Milliseconds of repeated calls: of the clock, and of the CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def of(self, call: Callable[[], T]) -> T:
        started, used = time.perf_counter(), time.process_time()
        result = call()
        self.wall.append((time.perf_counter() - started) * 1000)
        self.cpu.append((time.process_time() - used) * 1000)
        return result

    def __str__(self) -> str:
        p50, p99 = np.percentile(self.wall, [50, 99])
        return f"{p50:7.2f} {p99:7.2f} {np.median(self.cpu):7.2f}"


def name(user: int) -> str:
    return f"user-{user}"


def random_vectors(rng: np.random.Generator, rows: Sequence[str]) -> np.ndarray:
    return topic_vectors(rng, len(rows), max(len(rows) // 10, 1))


def batches(store: MemoryStore, users: range, session: int = 0) -> Iterator[tuple[int, pa.Table]]:
    """Users by shard, in tables of BATCH entries, made one at a time."""
    rng = np.random.default_rng(users.start + session)
    step = BATCH // EACH
    for number, members in store.by_shard(map(name, users)).items():
        for start in range(0, len(members), step):
            part = members[start : start + step]
            yield number, extracted(rng, part, EACH, partial(random_vectors, rng), session)


def load(store: MemoryStore, users: range) -> Times:
    spent = Times()
    for number, rows in batches(store, users):
        spent.of(partial(store.shards[number].insert, rows, "load"))
    for shard in store.shards:
        spent.of(shard.compact)  # as a backfill does at its end
    return spent


def append(store: MemoryStore, users: int, times: int) -> Times:
    """Small commits of one user each, to whichever shard is theirs."""
    rng, spent = np.random.default_rng(7), Times()
    for at in range(times):
        user = name(int(rng.integers(users)))
        rows = extracted(rng, [user], APPENDED, partial(random_vectors, rng), session=at + 1)
        spent.of(partial(store.shard_for(user).insert, rows, "append"))
    return spent


def search(config: StoreConfig, users: int, label: str) -> None:
    rng = np.random.default_rng(len(label) + users)
    lines = iter(texts(rng, 8 * SEARCHES))
    for k in (10, 60):
        retrieval = Retrieval(Given(), MemoryStore.open(config, MODEL))
        chosen = [name(u) for u in rng.permutation(users).tolist()]
        for user in chosen[:32]:
            retrieval([Query(user, next(lines), k)])
        asked = chosen[32 : 32 + SEARCHES] or chosen
        retrieval.users.clear()
        cold, warm = Times(), Times()
        for user in asked:
            cold.of(partial(retrieval, [Query(user, next(lines), k)]))
        for user in asked[-50:] * 4:
            warm.of(partial(retrieval, [Query(user, next(lines, "word1 word2"), k)]))
        print(f"{label:32} k={k:<3} {cold}   {warm}", flush=True)
    parts(retrieval, asked)


def parts(retrieval: Retrieval, asked: Sequence[str]) -> None:
    """What a cold search consists of: a look for a new version, reading the user's rows of it,
    making entries of these, and indexing them."""
    look, read, made, index = Times(), Times(), Times(), Times()
    shards = retrieval.store.shards
    newest = [NewestVersion(shard.entries) for shard in shards]
    for user in asked:
        number = retrieval.store.shard_number(user)
        version = look.of(newest[number])
        rows = read.of(partial(shards[number].rows_at, version, of_users([user])))
        index.of(partial(UserIndex, made.of(partial(from_table, rows, Entry))))
    print(f"{'':20} cold: look {look}  read {read}  entries {made}  index {index}")


def reopened(config: StoreConfig, users: int) -> None:
    """The first search of a new process, less its imports and word lists."""
    opened, first = [], []
    for user in range(0, users, max(users // REOPENED, 1)):
        command = [sys.executable, __file__, "--first", config.uri, name(user)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        times = json.loads(done.stdout)
        opened.append(times["open"])
        first.append(times["search"])
    values = f"open {np.median(opened):.0f}, first search {np.median(first):.0f}"
    print(f"{'':34} new process: {values}")


def first_search(uri: str, user: str) -> None:
    import lancedb  # noqa: F401

    WordModel().language_of(["word"])  # reads its word lists, once in a process
    spent = Times()
    store = spent.of(partial(MemoryStore.open, StoreConfig(uri=uri)))
    spent.of(partial(Retrieval(Given(), store), [Query(user, "word1 word2 word3", 10)]))
    print(json.dumps({"open": spent.wall[0], "search": spent.wall[1]}))


def keep_loading(config: StoreConfig, first: int, stop: Any) -> None:
    """What a backfill writes meanwhile: new users, batch by batch."""
    store = MemoryStore.open(config, MODEL)
    for number, rows in batches(store, range(first, first + 10_000)):
        if stop.is_set():
            return
        store.shards[number].insert(rows, "meanwhile")


def search_while_loading(config: StoreConfig, users: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    writer = spawn.Process(target=keep_loading, args=(config, 10 * users, stop))
    writer.start()
    before = MemoryStore.open(config, MODEL)
    at = sum(shard.entries.count_rows() for shard in before.shards)
    while sum(shard.entries.count_rows() for shard in before.shards) == at:
        time.sleep(0.2)
    search(config, users, "while a backfill writes")
    stop.set()
    writer.join()


def measure(users: int, appends: int, shards: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = StoreConfig(uri=f"{folder}/store", shards=shards)
        store = MemoryStore.create(config, MODEL)
        spent = load(store, range(users))
        entries, cpu, wall = users * EACH, sum(spent.cpu), sum(spent.wall)
        print(
            f"\n{entries:,} entries and as many messages of {users:,} users: loaded with "
            f"{cpu / entries * 1000:.1f} us CPU an entry, {entries / wall * 1000:,.0f} entries/s"
        )
        print(f"{'':38} cold p50     p99 cpu p50  warm p50     p99 cpu p50")
        search(config, users, "loaded")
        reopened(config, users)
        if appends:
            spent = append(store, users, appends)
            print(f"{appends:,} appends of {APPENDED} entries, ms (p50, p99, cpu p50): {spent}")
            search(config, users, f"after {appends:,} appends")
            search_while_loading(config, users)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a quick run on a tenth")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--first", nargs=2, metavar=("URI", "USER"))
    args = parser.parse_args()
    if args.first:
        first_search(*args.first)
        return
    print(environment())
    print("ms; cold: a user who is not in the cache; warm: one who is")
    sizes = (10, 100, 1_000) if args.small else (10, 1_000, 10_000)
    for users in sizes:
        appends = 0 if users < sizes[-1] else 100 if args.small else 1_000
        measure(users, appends, args.shards)


if __name__ == "__main__":
    main()
