"""However the input is cut and ordered and the work is spread: the same store, id by id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lightmem_core import Config
from lightmem_core.config import STEPS, Component, Pool
from lightmem_pipelines.backfill import BackfillRequest, backfill
from lightmem_pipelines.sleep import SleepRequest, sleep

pytestmark = pytest.mark.ray

USERS = ("ada", "ben", "chloé", "O'Brien", "李雷", "x' OR '1'='1")
SESSIONS, TURNS = 3, 5
SEEDS = (3, 16, 20)  # of one to three shards, committers and pools, and of one run and two
BY_LAYOUT = {"source"}  # where in the input a message was read

Rows = Callable[[Config, set[str]], dict[str, dict[str, Any]]]


def said(user: str, session: int) -> list[dict[str, Any]]:
    """Half of the sessions name no positions. Of what is said some is said again, or anew."""
    texts = [f"I now live in {('Porto', 'Oslo', 'Quito')[session]}.", "I play the violin."]
    texts += ["I play the violin.", *(f"Note {session} {n} of {user}." for n in range(TURNS - 3))]
    return [
        {
            "user_id": user,
            "session_id": f"s{session}",
            "role": "user",
            "content": text,
            "timestamp": 1_700_000_000 + session * 86_400 + turn * 60,
        }
        | ({} if session % 2 else {"position": turn})
        for turn, text in enumerate(texts)
    ]


def pools(random: Random) -> tuple[Pool, ...]:
    """One to three pools of one or two actors; two CPUs hold them all, with one to read."""
    cuts = random.choice(([], [2], [1, 4], [3, 4]))
    parts = [STEPS[a:b] for a, b in zip([0, *cuts], [*cuts, len(STEPS)], strict=True)]
    return tuple(
        Pool(
            steps=steps,
            actors=(random.randint(1, 2),) * 2,
            cpus=random.choice([0.05, 0.15]),
            batch_size=random.choice([1, 2, 3, 64]),
            batches=random.randint(2, 3) if steps == ("extract",) else 1,
        )
        for steps in parts
    )


def spread(config: Config, random: Random, uri: str) -> Config:
    store = config.memory.store.model_copy(update={"uri": uri, "shards": random.randint(1, 3)})
    run = {
        "pools": pools(random),
        "committers": random.randint(1, 3),
        "commit_buffers": random.choice([1, 2, 5, 500]),
        "sleep_entries_per_task": random.choice([1, 20, 500]),
    }
    return config.model_copy(
        update={
            "memory": config.memory.model_copy(update={"store": store}),
            "pipelines": config.pipelines.model_copy(update=run),
        }
    )


def in_files(
    rows: list[dict[str, Any]], random: Random, write: Callable[..., str], name: str
) -> tuple[str, ...]:
    """The rows in any order, in one to four files."""
    count = random.randint(1, 4)
    mixed = random.sample(rows, len(rows))
    return tuple(write(f"{name}-{n}.jsonl", mixed[n::count]) for n in range(count))


def in_runs(random: Random) -> list[list[dict[str, Any]]]:
    """Whole sessions, all at once or in two runs; the second is given some of the first again."""
    sessions = [said(user, session) for user in USERS for session in range(SESSIONS)]
    random.shuffle(sessions)
    cut = random.choice([len(sessions), len(sessions) // 2])
    parts = [sessions[:cut], sessions[cut - 2 :]] if cut < len(sessions) else [sessions]
    return [[row for session in part for row in session] for part in parts]


@pytest.fixture
def config(config: Config) -> Config:
    """One whose sleep phases take every kind of decision."""
    updates = {"updater": Component(use="updaters:EveryAction"), "buffer_tokens": 12}
    return config.model_copy(update={"memory": config.memory.model_copy(update=updates)})


def test_any_order_cut_and_layout_gives_the_same_store_awake_and_asleep(
    config: Config, write_lines: Callable[..., str], stored_rows: Rows, tmp_path: Path
):
    whole = [row for user in USERS for session in range(SESSIONS) for row in said(user, session)]

    def awake(config: Config, *runs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        asked = [BackfillRequest(files, progress=False) for files in runs]
        reports = [backfill(config, request).report for request in asked]
        assert sum(report["messages"]["stored"] for report in reports) == len(whole)
        assert sum(report["entries"] for report in reports) == len(whole)
        return stored_rows(config, BY_LAYOUT)

    def asleep(config: Config) -> dict[str, dict[str, Any]]:
        report = sleep(config, SleepRequest(progress=False)).report
        assert all(report[done] for done in ("merged", "superseded", "updated", "deleted"))
        return stored_rows(config, BY_LAYOUT)

    before = awake(config, (write_lines("whole.jsonl", whole),))
    after = asleep(config)
    for seed in SEEDS:
        random = Random(seed)
        other = spread(config, random, str(tmp_path / str(seed)))
        runs = [
            in_files(rows, random, write_lines, f"{seed}-{number}")
            for number, rows in enumerate(in_runs(random))
        ]
        assert awake(other, *runs) == before, f"seed {seed}"
        assert asleep(other) == after, f"seed {seed}"
