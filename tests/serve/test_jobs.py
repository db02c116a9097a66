"""Bulk uploads: counts, wrong lines, cancelling, a server that dies in between."""

import asyncio
import json
import time
from contextlib import suppress

import openai
import pytest
from openai.types import Batch

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.online.jobs import (
    CLAIM_MS,
    UPLOAD_MS,
    Job,
    JobStore,
    Line,
    OtherUpload,
    message_text,
)
from lightmem_core.online.keys import REFRESH_S
from lightmem_core.online.service import Incoming
from lightmem_serve.backend import Server
from lightmem_serve.jobs import JobRunner
from lightmem_serve.metrics import Metrics
from lightmem_serve.results import job_of

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
    assert [line["error"]["code"] for line in lines] == [
        *("bad_json", "wrong_type", "missing_role", "bad_time", "refused")
    ]


def test_the_same_lines_again_store_nothing_twice(server):
    for _ in range(2):
        assert ended(server, upload(server, rows("j-again", 4))["id"])["status"] == "completed"
    assert len(server.texts("j-again")) == 4


def test_the_same_key_makes_one_job(server):
    ids = {upload(server, rows("j-key", 2), **{"Idempotency-Key": "k1"})["id"] for _ in range(3)}
    assert len(ids) == 1
    assert upload(server, rows("j-key", 2), **{"Idempotency-Key": "k2"})["id"] not in ids


def test_a_key_that_was_given_with_another_body_is_refused_and_loses_nothing(server):
    key = {"Idempotency-Key": "j-longer"}
    first = ended(server, upload(server, rows("j-longer", 2), **key)["id"])
    text = "\n".join(json.dumps(row) for row in rows("j-longer", 5)).encode()
    reply = server.call("POST", "/jobs", text, headers={**JSONL, **key})
    assert (reply.status, "another body" in reply.body["detail"]) == (409, True)
    assert server.done("GET", f"/jobs/{first['id']}") == first
    assert len(server.texts("j-longer")) == 2


def test_a_job_that_is_sent_again_after_its_end_leaves_no_line_behind(server):
    key = {"Idempotency-Key": "j-resent"}
    first = ended(server, upload(server, [*rows("j-resent", 3), "{"], **key)["id"])
    assert upload(server, [*rows("j-resent", 3), "{"], **key) == first
    store = JobStore(MemoryStore.open(server.config.memory.store).database)
    left = store.lines.search().where(f"job_id = '{first['id']}'").to_list()
    assert [line["number"] for line in left] == [4]


def test_openai_s_client_lists_retrieves_and_cancels_jobs(server):
    wrong = {**rows("j-openai", 1)[0], "timestamp": "?", "custom_id": "row-2"}
    made = upload(server, [*rows("j-openai", 1), wrong])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        listed = [batch.id for batch in client.batches.list(limit=1)]
        assert made["id"] in listed
        assert listed == list(dict.fromkeys(listed))
        ended(server, made["id"])
        batch = client.batches.retrieve(made["id"])
        assert Batch.model_validate(server.done("GET", f"/jobs/{made['id']}")) == batch
        assert (batch.status, batch.completion_window) == ("completed", "24h")
        assert batch.created_at <= batch.in_progress_at <= batch.completed_at
        (line,) = client.files.content(batch.error_file_id).text.splitlines()
        assert (json.loads(line)["custom_id"], json.loads(line)["line"]) == ("row-2", 2)
        with pytest.raises(openai.ConflictError, match="has ended"):
            client.batches.cancel(made["id"])
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("job_0")
        foreign = server.make_key(tenant="rival", scopes=["admin"])
        with pytest.raises(openai.NotFoundError):
            client.with_options(api_key=foreign).batches.retrieve(made["id"])


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


def lines_of(job_id: str, count: int) -> list[Line]:
    text = message_text(Incoming("user", "hello", 1_000))
    return [Line.of(job_id, n, "ada", session_id="s", message=text) for n in range(1, count + 1)]


def submitted(jobs: JobStore, job_id: str) -> Job:
    return jobs.submit(Job(job_id, "", "", "validating", 0), lines_of(job_id, 3))


def test_of_two_runners_one_works_on_a_job_until_it_is_thought_dead(jobs):
    submitted(jobs, "job_1")
    assert jobs.claim("first").id == "job_1"
    assert jobs.claim("second") is None
    assert jobs.claim("first").id == "job_1"
    jobs.change("job_1", claimed_until=1)
    assert jobs.claim("second").id == "job_1"
    assert jobs.claim("first") is None
    assert CLAIM_MS >= 60_000


def test_parties_take_turns_and_of_one_party_the_oldest_job_is_first(jobs):
    for number, tenant in enumerate(("a", "a", "b")):
        jobs.submit(Job(f"job_{number}", tenant, "", "validating", 0), lines_of(f"job_{number}", 1))
        time.sleep(0.002)
    assert jobs.claim("me").id == "job_0"
    assert jobs.claim("me", {("a", ""): 2.0}).id == "job_2"
    assert jobs.claim("me", {("a", ""): 2.0, ("b", ""): 3.0}).id == "job_0"
    jobs.change("job_0", retry_at=2**50)
    assert jobs.claim("me").id == "job_1"
    jobs.cancel("job_0")
    assert jobs.claim("me").id == "job_0"


def test_an_upload_that_broke_off_is_gone_on_with_or_forgotten(jobs):
    def broken(job_id: str) -> None:
        """As a process leaves it that dies between the job and its lines."""
        found = jobs.submit(Job(job_id, "", "", "validating", 0, "d1"), lines_of(job_id, 2))
        jobs.lines.delete(f"number = 2 AND job_id = '{job_id}'")
        jobs.change(found.id, status="validating", in_progress_at=0)

    broken("job_1")
    assert jobs.claim("me") is None
    job = Job("job_1", "", "", "validating", 0, "d1")
    assert jobs.submit(job, lines_of("job_1", 2)).status == "in_progress"
    assert len(jobs.to_add("job_1", 0)) == 2
    with pytest.raises(OtherUpload):
        jobs.submit(Job("job_1", "", "", "validating", 0, "d2"), lines_of("job_1", 3))
    broken("job_2")
    jobs.change("job_2", created_at=1)
    jobs.claim("me")
    assert jobs.get("job_2") is None
    assert jobs.to_add("job_2", 0) == []
    assert UPLOAD_MS >= 60_000


class Failing:
    """A writer that fails for one user, in a way that nobody thought of."""

    def __init__(self):
        self.added: list[str] = []

    async def add(self, user_id, session_id, messages):
        if user_id == "bad":
            raise KeyError("never thought of")
        self.added.append(user_id)

    async def flush(self, user_id):
        return 0


def test_a_job_that_always_fails_ends_and_keeps_nobody_waiting(server, jobs):
    text = message_text(Incoming("user", "hello", 1_000))
    for user in ("bad", "good"):
        line = Line.of(f"job_{user}", 1, user, session_id="s", message=text)
        jobs.submit(Job(f"job_{user}", user, "", "validating", 0), [line])
        time.sleep(0.002)
    writer = Failing()
    about = (None, writer, server.config.serve, Metrics(), jobs, "hash-16", 1)
    runner = JobRunner(Server(*about), pause_s=0.02, most_attempts=4)

    async def until_both_end() -> None:
        task = asyncio.create_task(runner.run())
        try:
            async with asyncio.timeout(30):
                while not all(jobs.get(f"job_{user}").finished for user in ("bad", "good")):
                    assert not task.done()
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(until_both_end())
    good, bad = jobs.get("job_good"), jobs.get("job_bad")
    assert (good.status, good.completed, writer.added) == ("completed", 1, ["good"])
    assert (bad.status, bad.completed, bad.failed) == ("failed", 0, 1)
    assert good.finished_at < bad.finished_at
    shown = job_of(bad)
    assert shown.failed_at == bad.finished_at // 1000
    assert "4 times" in shown.errors.data[0].message
    assert "never thought of" not in shown.model_dump_json()
    (line,) = jobs.errors("job_bad")
    assert (line.message, line.error) == ("", bad.error)


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
    left = Job("job_left", "", "", "validating", 1, runner="dead", claimed_until=1)
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
