"""Bulk uploads that outlive the server: what was sent waits in the store until it is remembered.

A line goes as soon as what it says is extracted; of one that is wrong only the reason is kept. Each
names its user, so that who is erased is gone from here too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from lightmem_core.long_term.compaction import drop_versions
from lightmem_core.long_term.tables import (
    among,
    committed,
    insert_missing,
    keyed_table,
    now_ms,
    quoted,
    read,
    with_key,
)
from lightmem_core.online.service import Incoming
from lightmem_core.schema import from_table, schema_of, to_table
from lightmem_core.types import stable_id

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import DBConnection
    from lancedb.table import Table

Status = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled"
]  # fmt: skip
Party = tuple[str, str]
UNFINISHED = "status IN ('in_progress', 'finalizing', 'cancelling')"
CLAIM_MS = 120_000  # how long a job of a server that died is left alone
UPLOAD_MS = 600_000  # after which an upload that broke off is forgotten
LINES_AT_ONCE = 500
NOBODY: Mapping[Party, float] = MappingProxyType({})


class OtherUpload(ValueError):
    """There is a job of this id that was made of another body."""


@dataclass(frozen=True, slots=True)
class Job:
    """A bulk upload of `total` lines, of which `completed` are durable and `failed` are wrong.

    `user_id` is the only user it may name, "" for any of the tenant; `digest` is the hash of its
    body. It is `validating` until all lines are durable. Lines up to `reached` were looked at.
    After `attempts` that failed, the last with an `error`, it is tried again at `retry_at`; `waits`
    says what it ended without. `runner` works on it and may be thought dead after `claimed_until`.
    Times are UTC milliseconds, 0 for what was not yet.
    """

    id: str
    tenant: str
    user_id: str
    status: Status
    total: int
    digest: str = ""
    completed: int = 0
    failed: int = 0
    reached: int = 0
    error: str = ""
    waits: str = ""
    attempts: int = 0
    retry_at: int = 0
    created_at: int = 0
    in_progress_at: int = 0
    finalizing_at: int = 0
    finished_at: int = 0
    cancelling_at: int = 0
    runner: str = ""
    claimed_until: int = 0

    @property
    def finished(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    @property
    def party(self) -> Party:
        """Whose job it is: of those that wait, each party has its turn."""
        return self.tenant, self.user_id


@dataclass(frozen=True, slots=True)
class Line:
    """A message of a job, from line `number` of it. It waits, or was added and waits for its
    extraction; `error` says why it never will be. `custom_id` is what its sender calls it. No id is
    part of another: an erase looks for those of the user in all files."""

    id: str
    job_id: str
    number: int
    user_id: str
    session_id: str = ""
    message: str = ""
    added: bool = False
    error: str = ""
    custom_id: str = ""

    @classmethod
    def of(cls, job_id: str, number: int, user_id: str = "", **other: Any) -> Line:
        return cls(stable_id("line", job_id, number), job_id, number, user_id, **other)

    @property
    def incoming(self) -> Incoming:
        return Incoming(**json.loads(self.message))


JOBS, LINES = with_key(schema_of(Job)), with_key(schema_of(Line))


def message_text(message: Incoming) -> str:
    return json.dumps(asdict(message), ensure_ascii=False)


class JobStore:
    """The jobs of a store, and their lines. The tables are made when there is a first job."""

    def __init__(self, database: DBConnection):
        self.database = database
        self.lock = threading.Lock()

    @cached_property
    def jobs(self) -> Table:
        return self._table("jobs", JOBS)

    @cached_property
    def lines(self) -> Table:
        return self._table("job_lines", LINES)

    def submit(self, job: Job, lines: Sequence[Line]) -> Job:
        """Make a job durable, and go on with an upload of it that broke off. One that has all its
        lines is left as it is. Raise OtherUpload for one that was made of another body."""
        found = self.get(job.id)
        if found is not None and found.digest != job.digest:
            raise OtherUpload("this Idempotency-Key was given with another body: choose a new one")
        if found is None:
            failed = sum(bool(line.error) for line in lines)
            job = replace(job, status="validating", total=len(lines), failed=failed)
            row = to_table([replace(job, created_at=now_ms())], Job).cast(JOBS)
            insert_missing(self.jobs, "id", row)
        if found is None or found.status == "validating":
            insert_missing(self.lines, "id", to_table(lines, Line).cast(LINES))
            until, at = "status != 'validating'", now_ms()
            self.change(job.id, unless=until, status="in_progress", in_progress_at=at)
        return self.get(job.id) or job

    def get(self, job_id: str) -> Job | None:
        found = self._jobs(f"id = {quoted(job_id)}")
        return found[0] if found else None

    def latest(self, tenant: str, user_id: str, limit: int, after: str = "") -> list[Job]:
        """The jobs of a tenant, or of one user of it, newest first; those behind `after`."""
        where = f"tenant = {quoted(tenant)}"
        where += f" AND user_id = {quoted(user_id)}" if user_id else ""
        found = sorted(self._jobs(where), key=lambda job: (-job.created_at, job.id))
        place = next((n for n, job in enumerate(found, 1) if job.id == after), 0)
        return found[place : place + limit]

    def change(self, job_id: str, unless: str = "false", **values: Any) -> None:
        """Set some columns of a job, but not where `unless` holds. The others stay as another
        process may have set them meanwhile."""
        where = f"id = {quoted(job_id)} AND NOT ({unless})"
        committed(self.jobs, lambda: self.jobs.update(where=where, values=values))
        drop_versions(self.jobs)

    def cancel(self, job_id: str) -> None:
        """Stop a job, unless it has ended. What was added stays."""
        ended = f"NOT ({UNFINISHED}) OR status = 'cancelling'"
        self.change(job_id, unless=ended, status="cancelling", cancelling_at=now_ms())

    def claim(self, runner: str, served: Mapping[Party, float] = NOBODY) -> Job | None:
        """An unfinished job that no living runner works on, now this runner's: the oldest one of
        the party that was `served` longest ago."""
        self._forget_broken_off()
        now = now_ms()
        free = f"(runner = {quoted(runner)} OR claimed_until < {now})"
        due = f"(retry_at <= {now} OR status = 'cancelling')"
        waiting = self._jobs(f"{UNFINISHED} AND {free} AND {due}")
        if not waiting:
            return None
        first = min(waiting, key=lambda job: (served.get(job.party, 0), job.created_at, job.id))
        taken = f"runner != {quoted(runner)} AND claimed_until >= {now_ms()}"
        self.change(first.id, unless=taken, runner=runner, claimed_until=now_ms() + CLAIM_MS)
        mine = self.get(first.id)
        return mine if mine is not None and mine.runner == runner else None

    def give_up(self, job: Job, reason: str) -> None:
        """End a job that cannot go on. What was added stays; each line that was not is told."""
        left = f"job_id = {quoted(job.id)} AND NOT added AND error = ''"
        self._update(left, {"error": reason, "message": ""})
        counts = self.counts(job)
        self.forget(job.id)
        ended = {"status": "failed", "finished_at": now_ms(), "error": reason}
        self.change(job.id, "false", **ended, **counts)

    def to_add(self, job_id: str, after: int) -> list[Line]:
        """What is to be added of the lines behind number `after`, at most LINES_AT_ONCE."""
        place = f"number > {after} AND number <= {after + LINES_AT_ONCE}"
        found = self._lines(job_id, f"NOT added AND error = '' AND {place}")
        return sorted(found, key=lambda line: line.number)

    def added_users(self, job_id: str) -> list[str]:
        """The users whose lines were added and wait for their extraction."""
        where = f"job_id = {quoted(job_id)} AND added"
        return sorted(set(read(self.lines, where, ["user_id"])["user_id"].to_pylist()))

    def counts(self, job: Job) -> dict[str, int]:
        """How many lines of a job are durable, and how many are wrong. Before any are forgotten."""
        mine = f"job_id = {quoted(job.id)} AND "
        self.lines.checkout_latest()
        failed = self.lines.count_rows(mine + "error != ''")
        left = self.lines.count_rows(mine + "NOT added AND error = ''")
        return {"completed": job.total - failed - left, "failed": failed}

    def errors(self, job_id: str) -> list[Line]:
        return sorted(self._lines(job_id, "error != ''"), key=lambda line: line.number)

    def mark(self, lines: Sequence[Line], **values: Any) -> None:
        if lines:
            self._update(among("id", [line.id for line in lines]), values)

    def forget(self, job_id: str, user_id: str | None = None) -> None:
        """Drop what a job holds, or holds of one user, but for what was wrong."""
        whose = "" if user_id is None else f" AND user_id = {quoted(user_id)}"
        where = f"job_id = {quoted(job_id)} AND error = ''{whose}"
        committed(self.lines, lambda: self.lines.delete(where))
        drop_versions(self.lines)

    def _forget_broken_off(self) -> None:
        """Of an upload that never ended nobody was told that it is durable."""
        old = f"status = 'validating' AND created_at < {now_ms() - UPLOAD_MS}"
        for job in self._jobs(old):
            mine = f"job_id = {quoted(job.id)}"
            committed(self.lines, lambda mine=mine: self.lines.delete(mine))
            where = f"id = {quoted(job.id)} AND {old}"
            committed(self.jobs, lambda where=where: self.jobs.delete(where))

    def _update(self, where: str, values: dict[str, Any]) -> None:
        committed(self.lines, lambda: self.lines.update(where=where, values=values))
        drop_versions(self.lines)

    def _jobs(self, where: str) -> list[Job]:
        return from_table(read(self.jobs, where), Job)

    def _lines(self, job_id: str, where: str) -> list[Line]:
        return from_table(read(self.lines, f"job_id = {quoted(job_id)} AND {where}"), Line)

    def _table(self, name: str, schema: pa.Schema) -> Table:
        with self.lock:
            return keyed_table(self.database, name, schema, "id")
