"""Bulk uploads as jobs, in the shape of OpenAI's Batch object."""

import json
import secrets
from collections.abc import Iterator
from datetime import UTC
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from lightmem_core.formats.fields import clean
from lightmem_core.formats.messages import parse
from lightmem_core.history import UNPLACED
from lightmem_core.online.jobs import Job, Line, message_text
from lightmem_core.online.service import Incoming
from lightmem_core.types import Message, stable_id
from lightmem_serve.access import Asking, Caller, needs
from lightmem_serve.backend import Server, Serving
from lightmem_serve.errors import documented, refused, told
from lightmem_serve.models import JobModel, JobsResponse
from lightmem_serve.results import job_of

KINDS = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
JSONL = {"schema": {"type": "string"}}
BODY = {"requestBody": {"required": True, "content": dict.fromkeys(KINDS, JSONL)}}
LINES = {200: {"content": {"application/jsonl": JSONL}, "description": "One line for each"}}
router = APIRouter(prefix="/jobs", tags=["jobs"])
reads, writes = (Depends(needs(scope)) for scope in ("read", "write"))
JobId = Annotated[str, Path(min_length=1, max_length=64)]
NO_JOB = "there is no such job"


@router.post("", dependencies=[writes], openapi_extra=BODY, responses=documented(415))
async def create_job(
    request: Request,
    caller: Asking,
    server: Serving,
    idempotency_key: Annotated[str | None, Header(max_length=256)] = None,
) -> JobModel:
    """Remember the messages of a JSONL body: one a line, with user_id, role, content, timestamp,
    and if known session_id, position, name, agent_id and metadata. All lines are durable when this
    answers. With an Idempotency-Key the same upload makes one job only."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in KINDS:
        raise refused(415, f"send the messages as {KINDS[0]}, one a line")
    named = (idempotency_key,) if idempotency_key else ("", secrets.token_hex(16))
    job_id = f"job_{stable_id(caller.tenant, caller.user_id, caller.key_id, *named)}"
    lines = await run_sync(_read, await request.body(), caller, job_id)
    if not lines:
        raise refused(422, "the body holds no lines")
    job = Job(job_id, caller.tenant, caller.user_id, "in_progress", len(lines))
    with told():
        async with server.quiet:
            made = await run_sync(server.jobs.submit, job, lines)
    request.app.state.runner.wake.set()
    return job_of(made)


@router.get("", dependencies=[reads], responses=documented())
async def list_jobs(
    caller: Asking,
    server: Serving,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str, Query(max_length=64)] = "",
) -> JobsResponse:
    """Jobs, newest first."""
    with told():
        found = await run_sync(server.jobs.latest, caller.tenant, caller.user_id, limit + 1, after)
    jobs = [job_of(job) for job in found[:limit]]
    return JobsResponse(data=jobs, has_more=len(found) > limit)


@router.get("/{job_id}", dependencies=[reads], responses=documented(404))
async def get_job(job_id: JobId, caller: Asking, server: Serving) -> JobModel:
    return job_of(await _job(server, caller, job_id))


@router.post("/{job_id}/cancel", dependencies=[writes], responses=documented(404, 409))
async def cancel_job(request: Request, job_id: JobId, caller: Asking, server: Serving) -> JobModel:
    """Stop a job. What was added stays."""
    job = await _job(server, caller, job_id)
    if job.finished:
        raise refused(409, f"the job has ended: it is {job.status}")
    with told():
        async with server.quiet:
            await run_sync(server.jobs.cancel, job_id)
    request.app.state.runner.wake.set()
    return job_of(await _job(server, caller, job_id))


@router.get(
    "/{job_id}/errors",
    dependencies=[reads],
    response_class=Response,
    responses={**documented(404), **LINES},
)
async def job_errors(job_id: JobId, caller: Asking, server: Serving) -> Response:
    """The lines that are wrong, as JSONL: their number and why. What they held is not kept."""
    job = await _job(server, caller, job_id)
    with told():
        wrong = await run_sync(server.jobs.errors, job.id)
    rows = ({"line": line.number, "error": {"message": line.error}} for line in wrong)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return Response(text, media_type="application/jsonl")


async def _job(server: Server, caller: Caller, job_id: str) -> Job:
    with told():
        job = await run_sync(server.jobs.get, clean(job_id))
    if job is None or job.tenant != caller.tenant or caller.user_id not in ("", job.user_id):
        raise refused(404, NO_JOB)
    return job


def _read(body: bytes, caller: Caller, job_id: str) -> list[Line]:
    lines = (line for line in body.split(b"\n") if line.strip())
    return [_line(caller, job_id, *item) for item in enumerate(lines, 1)]


def _line(caller: Caller, job_id: str, number: int, text: bytes) -> Line:
    """A line of an upload, or the reason why it is wrong. All of a job of one user is that user's,
    to be erased with it."""
    wrong = partial(Line.of, job_id, number, caller.user_id)
    try:
        (found,) = _parsed(text)
        if not isinstance(found, Message):
            return wrong(error=f"{found.reason}: {found.detail}")
        owner = caller.owner(found.user_id)
    except (ValueError, RecursionError) as error:
        return wrong(error=f"bad_json: {clean(str(error))}"[:300])
    except HTTPException as error:
        return wrong(error=f"refused: {error.detail}"[:300])
    message = message_text(_incoming(found))
    return Line.of(job_id, number, owner, session_id=found.session_id, message=message)


def _parsed(text: bytes) -> Iterator[Any]:
    return parse(json.loads(text.decode()), "", UTC)


def _incoming(found: Message) -> Incoming:
    position = None if found.position == UNPLACED else found.position
    said = (found.role, found.content, found.said_at, found.name, found.agent_id, found.metadata)
    return Incoming(*said, position)
