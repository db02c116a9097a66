"""Bulk uploads as jobs, in the shape of OpenAI's Batch object."""

import hashlib
import json
import secrets
from datetime import UTC
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from lightmem_core.formats.fields import clean
from lightmem_core.formats.messages import parse
from lightmem_core.history import UNPLACED
from lightmem_core.online.jobs import Job, Line, message_text
from lightmem_core.online.service import Incoming
from lightmem_core.online.tenants import LONGEST_ID
from lightmem_core.types import Message, stable_id
from lightmem_serve.access import Asking, Caller, needs
from lightmem_serve.backend import Server, Serving
from lightmem_serve.errors import documented, refused, told
from lightmem_serve.models import JobModel, JobsResponse
from lightmem_serve.results import job_of, line_error_of

KINDS = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
JSONL = {"schema": {"type": "string"}}
BODY = {"requestBody": {"required": True, "content": dict.fromkeys(KINDS, JSONL)}}
LINES = {200: {"content": {"application/jsonl": JSONL}, "description": "One line for each"}}
router = APIRouter(prefix="/jobs", tags=["jobs"])
reads, writes = (Depends(needs(scope)) for scope in ("read", "write"))
JobId = Annotated[str, Path(min_length=1, max_length=64)]
NO_JOB = "there is no such job"


@router.post("", dependencies=[writes], openapi_extra=BODY, responses=documented(409, 415))
async def create_job(
    request: Request,
    caller: Asking,
    server: Serving,
    idempotency_key: Annotated[str | None, Header(max_length=256)] = None,
) -> JobModel:
    """Remember the messages of a JSONL body: one a line, with user_id, role, content, timestamp,
    and if known session_id, position, name, agent_id, metadata and custom_id. All lines are durable
    when this answers. With an Idempotency-Key the same upload makes one job only, and another one
    is refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in KINDS:
        raise refused(415, f"send the messages as {KINDS[0]}, one a line")
    named = (idempotency_key,) if idempotency_key else ("", secrets.token_hex(16))
    job_id = f"job_{stable_id(caller.tenant, caller.user_id, caller.key_id, *named)}"
    body = await request.body()
    lines = await run_sync(_read, body, caller, job_id)
    if not lines:
        raise refused(422, "the body holds no lines")
    digest = hashlib.sha256(body).hexdigest()
    job = Job(job_id, caller.tenant, caller.user_id, "validating", len(lines), digest)
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
    """Jobs, newest first. `last_id` is what to give as `after` for more."""
    with told():
        found = await run_sync(server.jobs.latest, caller.tenant, caller.user_id, limit + 1, after)
    jobs = [job_of(job) for job in found[:limit]]
    first, last = (jobs[0].id, jobs[-1].id) if jobs else (None, None)
    return JobsResponse(data=jobs, first_id=first, last_id=last, has_more=len(found) > limit)


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
    """The lines that are wrong, as JSONL: their number, custom_id if they had one, and why. What
    they held is not kept."""
    job = await _job(server, caller, job_id)
    with told():
        wrong = await run_sync(server.jobs.errors, job.id)
    text = "".join(f"{line_error_of(line).model_dump_json()}\n" for line in wrong)
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
    to be erased with it; so is a wrong line that names its user."""
    try:
        record = json.loads(text.decode())
        (found,) = parse(record, "", UTC)
    except (ValueError, RecursionError) as error:
        wrong = f"bad_json: {clean(str(error))}"[:300]
        return Line.of(job_id, number, caller.user_id, error=wrong)
    fields = record if isinstance(record, dict) else {}
    named = found.user_id if isinstance(found, Message) else fields.get("user_id")
    owner, refusal = _owner(caller, named)
    own = {"custom_id": _text(fields.get("custom_id"))[:LONGEST_ID]}
    if not isinstance(found, Message):
        own["error"] = f"{found.reason}: {found.detail}"
    elif refusal:
        own["error"] = f"refused: {refusal}"[:300]
    else:
        own |= {"session_id": found.session_id, "message": message_text(_incoming(found))}
    return Line.of(job_id, number, owner, **own)


def _owner(caller: Caller, named: Any) -> tuple[str, str]:
    """The store's id of the user whom a line names; or that of the key, and why it is not told."""
    try:
        return caller.owner(_text(named)), ""
    except HTTPException as error:
        return caller.user_id, error.detail


def _text(given: Any) -> str:
    return clean(given) if isinstance(given, str) else ""


def _incoming(found: Message) -> Incoming:
    position = None if found.position == UNPLACED else found.position
    said = (found.role, found.content, found.said_at, found.name, found.agent_id, found.metadata)
    return Incoming(*said, position)
