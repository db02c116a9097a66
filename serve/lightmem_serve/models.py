"""Answers of the HTTP interface, for the server and its clients: mem0's keys, and those of ours."""

from typing import Any, Literal

from pydantic import BaseModel, JsonValue

from lightmem_core.online.jobs import Status


class Answer(BaseModel):
    """`answer["results"]` is `answer.results`: code that was written for mem0 reads it so."""

    def __getitem__(self, name: str) -> Any:
        if name not in type(self).model_fields:
            raise KeyError(name)
        return getattr(self, name)


class SourceModel(Answer):
    """A message that a memory came from."""

    session_id: str
    position: int
    message_id: str


class ScoreParts(Answer):
    cosine: float
    window: float
    bm25: float
    speaker: float
    rerank: float | None = None


class MessageModel(Answer):
    """A message said near a memory's sources; the time is UTC milliseconds."""

    id: str
    session_id: str
    position: int
    role: str
    name: str
    content: str
    said_at: int


class Memory(Answer):
    """A memory under mem0's keys, with where it came from. `said_at` and `event_at` are UTC
    milliseconds: when it was said, and what it speaks of. One that waits is a message that is not
    extracted yet; `reason` says why that failed, if it did, and it is tried again. `superseded_by`
    is the memory that took the place of this one."""

    id: str
    memory: str
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    hash: str
    metadata: dict[str, JsonValue] | None
    expiration_date: str | None
    created_at: str
    updated_at: str
    state: Literal["stored", "waiting", "superseded", "deleted"]
    speaker: str
    topic: str
    said_at: int
    event_at: int | None
    sources: list[SourceModel]
    superseded_by: str | None
    reason: str | None = None


class Found(Memory):
    """A memory that a search found; `score` compares within one answer."""

    score: float
    score_parts: ScoreParts
    neighbours: list[MessageModel]


class SearchResponse(Answer):
    results: list[Found]


class MemoriesResponse(Answer):
    """`next` is what to give as `after` for more, null at the end."""

    results: list[Memory]
    next: str | None


class Added(Answer):
    """What became of a message. An ADD is durable, and searches find it from now on; NONE was there
    before. The id is the message's, and later stands for the memories that came of it; who waits
    for its extraction is told of these instead. One that `failed` waits too: it is tried again, and
    `reason` says why. `position` is its place in the session."""

    id: str
    memory: str
    event: Literal["ADD", "NONE"]
    state: Literal["waiting", "stored", "failed"]
    position: int
    reason: str | None = None


class AddResponse(Answer):
    results: list[Added]


class UpdateResponse(Answer):
    message: str
    memory: Memory


class Event(Answer):
    """A change of a memory, as mem0 tells it; `changed_by` is the run or request that made it."""

    id: str
    memory_id: str
    old_memory: str | None
    new_memory: str | None
    event: Literal["ADD", "UPDATE", "DELETE"]
    created_at: str
    updated_at: str
    is_deleted: bool
    actor_id: str | None
    role: str | None
    changed_by: str
    superseded_by: str | None


class ContextResponse(Answer):
    """`context` is the text for the prompt, of `tokens`; `results` are the memories in it."""

    context: str
    tokens: int
    results: list[Found]


class Done(Answer):
    message: str


class Erased(Done):
    """How many rows are gone from each table, or how many memories were deleted."""

    counts: dict[str, int]


class Slept(Answer):
    """How many decisions were applied, by action."""

    decisions: dict[str, int]


class Flushed(Answer):
    """How many memories were written."""

    entries: int


class UsersResponse(Answer):
    """Users in the order of their ids. `next` is what to give as `after` for more."""

    results: list[str]
    next: str | None


class RunModel(Answer):
    id: str
    kind: str
    status: str
    started_at: str
    finished_at: str | None
    report: dict[str, JsonValue]


class RunsResponse(Answer):
    """Runs, newest first. `next` is what to give as `after` for more."""

    results: list[RunModel]
    next: str | None


class Health(Answer):
    """`last_write_age_s` is how long ago a write last succeeded, null if none has yet."""

    status: Literal["ok"]
    embedder: str
    shards: int
    last_write_age_s: float | None


class Counts(Answer):
    """Lines: all, those that are durable, and those that are wrong."""

    total: int
    completed: int
    failed: int


class LineProblem(Answer):
    code: str | None
    message: str


class JobError(Answer):
    """Why a job failed or waits."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class LineError(Answer):
    """Why a line of a job is wrong, under the number and the name that it had."""

    id: str
    custom_id: str | None
    response: None = None
    line: int
    error: LineProblem


class JobErrors(Answer):
    object: Literal["list"] = "list"
    data: list[JobError]


class JobModel(Answer):
    """A bulk upload as OpenAI has its batches; times are Unix seconds. Its file is the upload
    itself and there is no output, but for `error_file_id`, this id, if lines were wrong: GET
    /jobs/{id}/errors says which."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Literal["/memories"] = "/memories"
    completion_window: Literal["24h"] = "24h"
    input_file_id: str
    status: Status
    errors: JobErrors | None
    output_file_id: None = None
    error_file_id: str | None
    request_counts: Counts
    metadata: None = None
    created_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None


class JobsResponse(Answer):
    """Jobs, newest first. `last_id` is what to give as `after` for more."""

    object: Literal["list"] = "list"
    data: list[JobModel]
    first_id: str | None
    last_id: str | None
    has_more: bool
