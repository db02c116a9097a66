"""What the framework itself costs: backfill and sleep with the shipped fakes in place of models.

    make bench-pipeline

For 200, 2,000, 10,000 and 30,000 users of 60 messages, whose messages stand mixed in the input, so
that they must be shuffled; into a store of eight shards, or one for each 100,000 messages, which
two processes write. Prints CPU per message, its growth and the peak memory of all processes. A
quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from measure import environment, run_measured

SIZES = (200, 2_000, 10_000, 30_000)
FEWEST_SHARDS, A_SHARD = 8, 100_000  # messages
SESSIONS, TURNS = 6, 10
FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
TOPICS = "garden harbour violin marathon sourdough telescope chess kayak pottery orchid".split()
WORDS = [f"word{n}" for n in range(5_000)]
FILES = 8


def write_input(folder: Path, users: int) -> None:
    """Messages of all users, session by session, spread over files as a log would hold them."""
    rng = random.Random(users)
    files = [(folder / f"part-{n}.jsonl").open("w") for n in range(FILES)]
    for session in range(SESSIONS):
        for user in range(users):
            for row in session_rows(rng, user, session):
                files[user % FILES].write(json.dumps(row) + "\n")
    for file in files:
        file.close()


def session_rows(rng: random.Random, user: int, session: int) -> list[dict[str, object]]:
    topic = rng.choice(TOPICS)
    start = 1_700_000_000 + session * 604_800 + user
    return [
        {
            "user_id": f"user-{user}",
            "session_id": f"s{session}",
            "position": turn,
            "role": "user" if turn % 2 == 0 else "assistant",
            "content": " ".join([topic, *rng.choices(WORDS, k=20)]),
            "timestamp": start + turn * 30,
        }
        for turn in range(TURNS)
    ]


def run_one(folder: Path, shards: int) -> None:
    """Backfill and sleep, in this process and its Ray; print what the reports say."""
    from lightmem_core import load_config
    from lightmem_pipelines.backfill import BackfillRequest, backfill
    from lightmem_pipelines.sleep import SleepRequest, sleep

    config = load_config(FAKES, uri=str(folder / "store"), shards=shards)
    built = backfill(config, BackfillRequest((str(folder / "input"),), progress=False))
    slept = sleep(config, SleepRequest(progress=False))
    print(json.dumps({"backfill": built.report, "sleep": slept.report}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="*", default=SIZES)
    parser.add_argument("--shards", type=int, help="of every store")
    parser.add_argument("--one", type=Path, help="only run this folder's input")
    args = parser.parse_args()
    if args.one:
        run_one(args.one, args.shards or FEWEST_SHARDS)
        return
    print(environment())
    columns = "shards   messages  cpu s  wall s  ms cpu/message  peak RSS MB  peak PSS MB  sleep s"
    print(f"  users  {columns}")
    points = [measure(users, args.shards) for users in args.users]
    for (n, cpu), (m, more) in pairwise(points):
        growth = math.log(more / cpu) / math.log(m / n)
        print(f"CPU grows with exponent {growth:.2f} from {n:,} to {m:,} messages")
    if len(points) < 2:
        return
    (n, cpu), (m, more) = points[0], points[-1]
    print(f"without the fixed cost of starting: {(more - cpu) / (m - n) * 1000:.3f} ms per message")


def measure(users: int, shards: int | None) -> tuple[int, float]:
    shards = shards or max(FEWEST_SHARDS, users * SESSIONS * TURNS // A_SHARD)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "input").mkdir()
        write_input(folder / "input", users)
        command = [sys.executable, __file__, "--one", name, "--shards", str(shards)]
        cost = run_measured(command)
    reports = json.loads(cost.output.splitlines()[-1])
    messages = reports["backfill"]["messages"]["stored"]
    assert messages == users * SESSIONS * TURNS, reports
    print(
        f"{users:7,}  {shards:6}  {messages:9,}  {cost.cpu:5.0f}  {cost.wall:6.0f}"
        f"  {cost.cpu / messages * 1000:14.3f}  {cost.peak_rss / 2**20:11,.0f}"
        f"  {cost.peak_pss / 2**20:11,.0f}  {reports['sleep']['seconds']:7.1f}",
        flush=True,
    )
    return messages, cost.cpu


if __name__ == "__main__":
    main()
