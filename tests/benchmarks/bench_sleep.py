"""What the sleep phase costs outside the LLM: queues alone, then the whole phase with rules.

    make bench-sleep

Queues of one user with N entries, and of many users, in one thread, then the whole phase, also of
one user alone, all of whose entries a task holds. Beside the queues of up to 4,000 the way of the
reference implementation: for each entry one search in its user's entries, filtered by time. The
stands-in are sampled and scaled to N: qdrant in process (`pip install qdrant-client`; left out
where it is missing), LanceDB, and one matrix-vector product an entry. Pairs of the sample are
compared with the queues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import psutil
from measure import Cost, environment, run_measured
from synthetic import DIM, extracted, topic_vectors

from lightmem_core import Config, load_config

K, THETA = 20, 0.4  # the defaults
FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
SIZES = (1_000, 4_000, 20_000, 50_000, 100_000)
SAMPLE = 40  # entries that the reference's way is measured on
REFERENCE_UP_TO = 4_000
EACH = 100  # entries of a user of the whole phase
STORED_AT_ONCE = 5_000  # entries

Search = Callable[[int], dict[int, float]]


def one_user(n: int) -> None:
    """Queues of one user, and the same by one search an entry."""
    from lightmem_core.long_term.queues import update_queues

    vectors = topic_vectors(np.random.default_rng(n), n, max(n // 10, 1))
    list(update_queues(vectors[:64], K, THETA))
    held, started = psutil.Process().memory_info().rss, time.process_time()
    pairs = sum(len(queue) for _, queue in update_queues(vectors, K, THETA))
    cpu, memory = time.process_time() - started, max(_peak_rss() - held, 0)
    print(json.dumps({"cpu": cpu, "memory": memory, "pairs": pairs}))
    if n <= REFERENCE_UP_TO:
        queues = {i: dict(queue) for i, queue in update_queues(vectors, K, THETA)}
        compare(vectors, queues)


def compare(vectors: np.ndarray, queues: dict[int, dict[int, float]]) -> None:
    n = len(vectors)
    sample = np.random.default_rng(1).choice(n - 1, min(SAMPLE, n - 1), replace=False).tolist()
    for name, search in searches(vectors):
        search(0)
        started = time.process_time()
        found = [search(i) for i in sample]
        cpu = (time.process_time() - started) / len(sample) * n
        same = sum(_same(queues.get(i, {}), f) for i, f in zip(sample, found, strict=True))
        print(json.dumps({"way": name, "cpu": cpu, "same": same, "sample": len(sample)}))


def _peak_rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _same(queue: dict[int, float], found: dict[int, float]) -> bool:
    """Whether two queues agree, but for pairs within rounding of theta or of their last place."""
    edge = max(THETA, min(queue.values(), default=THETA) if len(queue) == K else THETA)
    inner = [{j for j, s in q.items() if s > edge + 1e-5} for q in (queue, found)]
    return inner[0] == inner[1]


def searches(vectors: np.ndarray) -> Iterator[tuple[str, Search]]:
    """The ways to ask for the K entries most similar to entry i, among later ones."""
    if find_spec("qdrant_client"):
        yield "qdrant in process", _qdrant(vectors)
    with tempfile.TemporaryDirectory() as folder:
        yield "LanceDB", _lancedb(vectors, folder)
    yield "matrix-vector products", partial(_product, vectors)


def _qdrant(vectors: np.ndarray) -> Search:
    from qdrant_client import QdrantClient, models  # pyright: ignore[reportMissingImports]

    client = QdrantClient(":memory:")
    size = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("entries", vectors_config=size)
    payload = [{"at": float(i)} for i in range(len(vectors))]
    client.upload_collection("entries", vectors, payload, ids=list(range(len(vectors))))

    def search(i: int) -> dict[int, float]:
        later = models.FieldCondition(key="at", range=models.Range(gt=float(i)))
        found = client.query_points(
            "entries", vectors[i].tolist(), limit=K, query_filter=models.Filter(must=[later])
        )
        return {int(p.id): p.score for p in found.points if p.score >= THETA}

    return search


def _lancedb(vectors: np.ndarray, folder: str) -> Search:
    import lancedb
    import pyarrow as pa

    at = np.arange(len(vectors))
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM)
    table = lancedb.connect(folder).create_table("entries", pa.table({"at": at, "vector": column}))

    def search(i: int) -> dict[int, float]:
        query: Any = table.search(vectors[i], vector_column_name="vector")
        query = query.distance_type("cosine").where(f"at > {i}", prefilter=True)
        rows = query.select(["at", "_distance"]).limit(K).to_list()
        found = {row["at"]: 1 - row["_distance"] for row in rows}
        return {j: similarity for j, similarity in found.items() if similarity >= THETA}

    return search


def _product(vectors: np.ndarray, i: int) -> dict[int, float]:
    similarities = vectors[i + 1 :] @ vectors[i]
    best = np.argsort(-similarities, kind="stable")[:K]
    return {int(j) + i + 1: float(similarities[j]) for j in best if similarities[j] >= THETA}


def many_users(users: int, each: int) -> None:
    """Queues of users of equal size, from a pool of vectors that differ."""
    from lightmem_core.long_term.queues import update_queues

    rng = np.random.default_rng(each)
    pool = [topic_vectors(rng, each, max(each // 10, 1)) for _ in range(100)]
    started, pairs = time.process_time(), 0
    for user in range(users):
        pairs += sum(len(q) for _, q in update_queues(pool[user % len(pool)], K, THETA))
    print(json.dumps({"cpu": time.process_time() - started, "pairs": pairs}))


def phase_config(folder: str) -> Config:
    config = load_config(FAKES, uri=f"{folder}/store")
    two = config.pipelines.model_copy(update={"num_cpus": 2})
    return config.model_copy(update={"pipelines": two})


def fill(users: int, each: int, folder: str) -> None:
    from lightmem_core import factory
    from lightmem_core.long_term.store import MemoryStore, VectorModel

    config = phase_config(folder).memory
    embedder, rng = factory.embedder(config), np.random.default_rng(3)
    store = MemoryStore.create(config.store, VectorModel.of(embedder))
    step = max(STORED_AT_ONCE // each, 1)
    for start in range(0, users, step):
        names = [f"user-{n}" for n in range(start, min(start + step, users))]
        store.shards[0].insert(extracted(rng, names, each, embedder.encode), "load")


def whole_phase(folder: str) -> None:
    """The phase with rules, in this process and its Ray."""
    from lightmem_pipelines.sleep import SleepRequest, sleep

    print(json.dumps(sleep(phase_config(folder), SleepRequest(progress=False)).report))


def measured(*arguments: object) -> tuple[Cost, list[dict[str, Any]]]:
    cost = run_measured([sys.executable, __file__, "--one", *map(str, arguments)])
    return cost, [json.loads(line) for line in cost.output.splitlines() if line.startswith("{")]


def show_one_user(sizes: tuple[int, ...]) -> None:
    print("\none user:     N   CPU s   us/entry   grows by MB     pairs")
    points = []
    for n in sizes:
        _, (ours, *ways) = measured("user", n)
        points.append((n, ours["cpu"]))
        print(
            f"      {n:9,}  {ours['cpu']:6.3f}  {ours['cpu'] / n * 1e6:9.1f}"
            f"  {ours['memory'] / 2**20:12.0f}  {ours['pairs']:8,}"
        )
        for way in ways:
            print(
                f"{'':10} {way['way']:24} {way['cpu']:9.2f} CPU s, {way['cpu'] / ours['cpu']:,.0f}"
                f" times; same pairs for {way['same']} of {way['sample']} entries sampled"
            )
    for (n, cpu), (m, more) in pairwise(points):
        print(f"CPU grows with exponent {math.log(more / cpu) / math.log(m / n):.2f} to N = {m:,}")


def show_whole_phase(sizes: tuple[int, int]) -> None:
    """Two sizes, so that what starting Ray costs can be told from what an entry costs."""
    points = [(users * EACH, phase_of(users, EACH)) for users in sizes]
    (n, cpu), (m, more) = points
    each = max(more - cpu, 1e-9) / (m - n)
    print(f"beyond what starting costs: {each * 1e6:.0f} CPU us an entry, {1 / each:,.0f} a CPU s")


def phase_of(users: int, each: int) -> float:
    """The CPU seconds of a phase."""
    with tempfile.TemporaryDirectory() as folder:
        measured("fill", users, each, folder)
        cost, (report,) = measured("phase", folder)
    print(
        f"whole phase, {users:,} users x {each:,}: {report['merged']:,} merged; {cost.cpu:.1f} CPU "
        f"s, {report['seconds']:.1f} s of the clock; all processes {cost.peak_rss / 2**20:,.0f} MB",
        flush=True,
    )
    return cost.cpu


def run_one(kind: str, *values: str) -> None:
    if kind == "user":
        one_user(int(values[0]))
    elif kind == "users":
        many_users(int(values[0]), int(values[1]))
    elif kind == "fill":
        fill(int(values[0]), int(values[1]), values[2])
    else:
        whole_phase(values[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a quick run on less")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(*args.one)
        return
    print(environment())
    show_one_user((1_000, 4_000) if args.small else SIZES)
    for users, each in ((100, 200), (1_000, 100)) if args.small else ((1_000, 200), (10_000, 100)):
        _, (found,) = measured("users", users, each)
        rate = users * each / found["cpu"]
        print(f"{users:,} users x {each}: {found['cpu']:.2f} CPU s, {rate:,.0f} entries/CPU s")
    show_whole_phase((50, 200) if args.small else (200, 10_000))
    phase_of(1, 4_000 if args.small else SIZES[-1])


if __name__ == "__main__":
    main()
