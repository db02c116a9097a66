"""Requests and responses of the HTTP interface."""

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from lightmem_core.long_term.retrieve import Hit, Query
from lightmem_core.types import Entry


class SearchRequest(BaseModel):
    """A search in one user's memories; `since` and `until` bound when they were said."""

    model_config = ConfigDict(extra="forbid")

    user_id: str = Field(min_length=1)
    query: str = Field(min_length=1, max_length=8_000)
    limit: int = Field(default=5, ge=1, le=1_000)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None

    def to_query(self) -> Query:
        since, until = (_ms(time) for time in (self.since, self.until))
        return Query(self.user_id, self.query, self.limit, since, until)


class SourceModel(BaseModel):
    session_id: str
    position: int


class ScoreParts(BaseModel):
    cosine: float
    window: float
    bm25: float
    speaker: float


class Memory(BaseModel):
    """A memory found; times are UTC milliseconds, `score` compares within one answer."""

    id: str
    memory: str
    speaker: str
    topic: str
    said_at: int
    event_at: int | None
    sources: list[SourceModel]
    score: float
    score_parts: ScoreParts

    @classmethod
    def of(cls, hit: Hit) -> "Memory":
        entry: Entry = hit.entry
        places = (*entry.sources, *entry.absorbed)
        return cls(
            id=entry.id,
            memory=entry.text,
            speaker=entry.speaker,
            topic=entry.topic,
            said_at=entry.said_at,
            event_at=entry.event_at,
            sources=[SourceModel(session_id=s.session_id, position=s.position) for s in places],
            score=hit.score,
            score_parts=ScoreParts(
                cosine=hit.cosine, window=hit.window, bm25=hit.bm25, speaker=hit.speaker
            ),
        )


class SearchResponse(BaseModel):
    results: list[Memory]


class Health(BaseModel):
    status: str
    embedder: str
    shards: int


def _ms(time: AwareDatetime | None) -> int | None:
    return None if time is None else int(time.timestamp() * 1000)
