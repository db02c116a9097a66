"""From the store's rows to the answers of the HTTP interface."""

import hashlib
from collections.abc import Collection
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel

from lightmem_core.long_term.render import moment
from lightmem_core.long_term.retrieve import Hit
from lightmem_core.long_term.runs import Run
from lightmem_core.long_term.versions import EntryHistory, held_since
from lightmem_core.metadata import EXPIRATION, parsed
from lightmem_core.online.jobs import Job, Line
from lightmem_core.online.provisional import WaitingEntry
from lightmem_core.online.service import Accepted, Incoming
from lightmem_core.types import DELETED, Entry
from lightmem_serve.access import Caller
from lightmem_serve.models import (
    Added,
    Counts,
    Event,
    Found,
    JobError,
    JobErrors,
    JobModel,
    LineError,
    LineProblem,
    Memory,
    MessageModel,
    RunModel,
    ScoreParts,
    SourceModel,
)
from lightmem_serve.schemas import DEFAULT_SESSION


def memory_of(entry: Entry, caller: Caller) -> Memory:
    return Memory(**_of_entry(entry, caller))


def found_of(hit: Hit, caller: Caller) -> Found:
    near = [MessageModel(**_fields(MessageModel, message)) for message in hit.neighbours]
    parts = ScoreParts(**_fields(ScoreParts, hit))
    own = {"score": hit.score, "score_parts": parts, "neighbours": near}
    return Found(**_of_entry(hit.entry, caller), **own)


def _of_entry(entry: Entry, caller: Caller) -> dict[str, Any]:
    said = dict(parsed(entry.metadata))
    expires = said.pop(EXPIRATION, None)
    stored = entry.stored_at or entry.said_at
    places = (*entry.sources, *entry.absorbed)
    return {
        "id": entry.id,
        "memory": entry.text,
        "user_id": caller.shown(entry.user_id),
        "agent_id": entry.agent_id or None,
        "run_id": None if entry.session_id == DEFAULT_SESSION else entry.session_id,
        "hash": hashlib.md5(entry.text.encode(), usedforsecurity=False).hexdigest(),
        "metadata": said or None,
        "expiration_date": None if expires is None else str(expires),
        "created_at": moment(stored),
        "updated_at": moment(max(stored, entry.changed_at)),
        "state": state_of(entry),
        "speaker": entry.speaker,
        "topic": entry.topic,
        "said_at": entry.said_at,
        "event_at": entry.event_at,
        "sources": [SourceModel(**_fields(SourceModel, source)) for source in places],
        "superseded_by": _successor(entry),
        "reason": _reason(entry),
    }


def added_of(accepted: Accepted, message: Incoming) -> Added:
    new = accepted.state == "accepted"
    return Added(
        id=accepted.message_id,
        memory=message.content,
        event="ADD" if new else "NONE",
        state="waiting" if new else "stored",
        position=accepted.position,
    )


def written_of(entry: Entry, new: Collection[str]) -> Added:
    """What came of messages, of which some are `new`."""
    reason = _reason(entry)
    waits = "failed" if reason else "waiting"
    return Added(
        id=entry.id,
        memory=entry.text,
        event="ADD" if entry.message_ids & set(new) else "NONE",
        state=waits if isinstance(entry, WaitingEntry) else "stored",
        position=entry.position,
        reason=reason,
    )


def run_of(run: Run) -> RunModel:
    return RunModel(
        id=run.id,
        kind=run.kind,
        status=run.status,
        started_at=moment(run.started_at),
        finished_at=moment(run.finished_at) if run.finished_at else None,
        report=run.report,
    )


def job_of(job: Job) -> JobModel:
    return JobModel(
        id=job.id,
        status=job.status,
        input_file_id=job.id,
        errors=_job_errors(job),
        error_file_id=job.id if job.failed else None,
        request_counts=Counts(total=job.total, completed=job.completed, failed=job.failed),
        created_at=job.created_at // 1000,
        in_progress_at=job.in_progress_at // 1000 or None,
        finalizing_at=job.finalizing_at // 1000 or None,
        completed_at=_ended(job, "completed"),
        failed_at=_ended(job, "failed"),
        cancelling_at=job.cancelling_at // 1000 or None,
        cancelled_at=_ended(job, "cancelled"),
    )


def line_error_of(line: Line) -> LineError:
    reason, mark, _ = line.error.partition(": ")
    code = reason if mark and reason.isidentifier() else None
    error = LineProblem(code=code, message=line.error)
    return LineError(id=line.id, custom_id=line.custom_id or None, line=line.number, error=error)


def _job_errors(job: Job) -> JobErrors | None:
    told = {"server_error": job.error, "extraction_waits": job.waits}
    data = [JobError(code=code, message=message) for code, message in told.items() if message]
    return JobErrors(data=data) if data else None


def _ended(job: Job, status: str) -> int | None:
    return job.finished_at // 1000 if job.status == status else None


def state_of(entry: Entry) -> Literal["stored", "waiting", "superseded", "deleted"]:
    if entry.superseded_by:
        return "superseded" if _successor(entry) else "deleted"
    return "waiting" if isinstance(entry, WaitingEntry) else "stored"


def events(history: EntryHistory) -> list[Event]:
    """What happened to a memory, oldest first. Changes that left its text as it was and did not
    end it, such as new sources, are none to mem0."""
    states = history.states
    first = _event(states[0], None, "ADD")
    changes = ((old, new) for old, new in pairwise(states) if _changed(old, new))
    later = (_event(new, old, "UPDATE" if new.active else "DELETE") for old, new in changes)
    return [first, *later]


def _changed(old: Entry, new: Entry) -> bool:
    return (old.text, old.metadata, old.active) != (new.text, new.metadata, new.active)


def _event(new: Entry, old: Entry | None, kind: Literal["ADD", "UPDATE", "DELETE"]) -> Event:
    return Event(
        id=f"{new.id}.{new.gen}",
        memory_id=new.id,
        old_memory=old.text if old else None,
        new_memory=new.text if new.active else None,
        event=kind,
        created_at=moment(new.stored_at),
        updated_at=moment(held_since(new)),
        is_deleted=not new.active,
        actor_id=None,
        role=None,
        changed_by=new.changed_by or new.run_id,
        superseded_by=_successor(new),
    )


def _reason(entry: Entry) -> str | None:
    return (entry.reason or None) if isinstance(entry, WaitingEntry) else None


def _successor(entry: Entry) -> str | None:
    return entry.superseded_by if entry.superseded_by not in ("", DELETED) else None


def _fields(model: type[BaseModel], row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in model.model_fields}
