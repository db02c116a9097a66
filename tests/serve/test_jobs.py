"""Bulk uploads: counts, wrong lines, cancelling, a server that dies in between."""

import json
import time

import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.online.jobs import CLAIM_MS, Job, JobStore, Line, message_text
from lightmem_core.online.keys import REFRESH_S
from lightmem_core.online.service import Incoming

JSONL = {"content-type": "application/jsonl"}


def rows(user: str, count: int, **other) -> list[dict]:
    said = {"user_id": user, "role": "user", "session_id": "s1", **other}
    return [
        {**said, "content": f"{user} fact {n}", "timestamp": 1_700_000_000 + n}
        for n in range(count)
    ]


def upload(server, lines: list, **headers) -> dict:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return server.done("POST", "/jobs", text.encode(), headers={**JSONL, **headers})


def ended(server, job_id: str) -> dict:
    until = time.monotonic() + 60
    while (job := server.done("GET", f"/jobs/{job_id}"))["status"] in (
        "in_progress",
        "finalizing",
        "cancelling",
    ):
        assert time.monotonic() < until, job
        time.sleep(0.05)
    return job


def test_a_job_remembers_its_lines_and_tells_which_are_wrong(server):
    wrong = [
        "{",
        "[]",
        json.dumps({"user_id": "j-1"}),
        json.dumps({**rows("j-1", 1)[0], "timestamp": "?"}),
    ]
    other = rows("@acme/victim", 1)
    made = upload(server, [*rows("j-1", 7), *wrong, *rows("j-2", 3), *other])
    assert (made["object"], made["request_counts"]["total"]) == ("batch", 15)
    job = ended(server, made["id"])
    assert job["status"] == "completed"
    assert job["request_counts"] == {"total": 15, "completed": 10, "failed": 5}
    assert job["error_file_id"] == job["id"]
    assert job["completed_at"] >= job["created_at"]
    assert len(server.texts("j-1")) == 7
    assert len(server.texts("j-2")) == 3
    text = server.done("GET", f"/jobs/{job['id']}/errors")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["line"] for line in lines] == [8, 9, 10, 11, 15]
    assert all(line["error"]["message"] for line in lines)


def test_the_same_lines_again_store_nothing_twice(server):
    for _ in range(2):
        assert ended(server, upload(server, rows("j-again", 4))["id"])["status"] == "completed"
    assert len(server.texts("j-again")) == 4


def test_the_same_key_makes_one_job(server):
    ids = {upload(server, rows("j-key", 2), **{"Idempotency-Key": "k1"})["id"] for _ in range(3)}
    assert len(ids) == 1
    assert upload(server, rows("j-key", 2), **{"Idempotency-Key": "k2"})["id"] not in ids


def test_a_finished_job_cannot_be_cancelled(server):
    job = ended(server, upload(server, rows("j-done", 1))["id"])
    assert server.call("POST", f"/jobs/{job['id']}/cancel").status == 409
    assert server.call("POST", "/jobs/job_0/cancel").status == 404


@pytest.mark.parametrize(
    ("body", "kind", "status"), [(b"", JSONL, 422), (b"\n\n", JSONL, 422), (b"{}", {}, 415)]
)
def test_what_is_no_upload_is_refused(server, body, kind, status):
    assert server.call("POST", "/jobs", body, headers=kind).status == status


def test_a_list_of_jobs_is_read_page_by_page(server):
    made = [upload(server, rows("j-list", 1))["id"] for _ in range(3)]
    first = server.done("GET", "/jobs?limit=2")
    assert first["has_more"]
    second = server.done("GET", f"/jobs?limit=100&after={first['data'][-1]['id']}")
    listed = [job["id"] for job in (*first["data"], *second["data"])]
    assert len(set(listed)) == len(listed)
    assert set(made) <= set(listed)


@pytest.fixture
def jobs(tmp_path) -> JobStore:
    store = MemoryStore.create(StoreConfig(uri=str(tmp_path / "store")), VectorModel("hash-16", 16))
    return JobStore(store.database)


def submitted(jobs: JobStore, job_id: str, count: int = 3) -> Job:
    text = message_text(Incoming("user", "hello", 1_000))
    lines = [Line.of(job_id, n, "ada", session_id="s", message=text) for n in range(1, count + 1)]
    return jobs.submit(Job(job_id, "", "", "in_progress", 0), lines)


def test_of_two_runners_one_works_on_a_job_until_it_is_thought_dead(jobs):
    submitted(jobs, "job_1")
    assert jobs.claim("first").id == "job_1"
    assert jobs.claim("second") is None
    assert jobs.claim("first").id == "job_1"
    jobs.change("job_1", claimed_until=1)
    assert jobs.claim("second").id == "job_1"
    assert jobs.claim("first") is None
    assert CLAIM_MS >= 60_000


def test_a_job_goes_on_with_what_was_not_added(jobs):
    job = submitted(jobs, "job_1")
    first, *rest = jobs.to_add("job_1", 0)
    assert first.incoming == Incoming("user", "hello", 1_000)
    jobs.mark([first], added=True, message="")
    assert [line.number for line in jobs.to_add("job_1", 0)] == [2, 3]
    assert jobs.counts(job) == {"completed": 1, "failed": 0}
    jobs.mark(rest[:1], error="no", message="")
    assert jobs.counts(job) == {"completed": 1, "failed": 1}
    assert jobs.added_users("job_1") == ["ada"]
    jobs.forget("job_1")
    assert [line.number for line in jobs.errors("job_1")] == [2]


def test_a_cancelled_job_stays_cancelled(jobs):
    submitted(jobs, "job_1")
    jobs.cancel("job_1")
    jobs.change("job_1", unless="status = 'cancelling'", status="finalizing")
    assert jobs.get("job_1").status == "cancelling"
    jobs.change("job_1", status="cancelled")
    jobs.cancel("job_1")
    assert jobs.get("job_1").status == "cancelled"


def test_a_job_of_a_server_that_died_is_finished_by_the_next(server):
    store = MemoryStore.open(server.config.memory.store)
    text = message_text(Incoming("user", "I moved to Porto", 1_000))
    lines = [Line.of("job_left", 1, "j-left", session_id="s", message=text)]
    left = Job("job_left", "", "", "in_progress", 1, runner="dead", claimed_until=1)
    JobStore(store.database).submit(left, lines)
    assert ended(server, "job_left")["request_counts"]["completed"] == 1
    assert len(server.texts("j-left")) == 1


def test_who_is_erased_is_gone_from_jobs_and_others_are_not(server):
    key = server.make_key(user="j-gone", scopes=["admin"])
    text = "\n".join(json.dumps(row) for row in [*rows("j-gone", 12), *rows("j-else", 1)])
    made = server.done("POST", "/jobs", text.encode(), key=key, headers=JSONL)
    mixed = upload(server, [*rows("j-gone", 11, session_id="s2"), *rows("j-stays", 11), "{"])
    for job in (made, mixed):
        ended(server, job["id"])
    assert server.done("DELETE", "/memories?user_id=j-gone")["counts"]
    assert server.call("GET", f"/jobs/{made['id']}").status == 404
    time.sleep(1.2 * REFRESH_S)  # that long a server believes the keys that it has read
    assert server.call("GET", "/memories", key=key).status == 401
    assert server.done("GET", f"/jobs/{mixed['id']}")["request_counts"]["failed"] == 1
    assert len(server.texts("j-stays")) == 11
