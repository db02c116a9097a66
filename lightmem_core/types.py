"""The rows that flow between stages. Frozen, plain, and free of behaviour beyond identity.

Every time is UTC milliseconds since the epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

State = Literal["", "stored", "no_facts", "quarantined"]
Action = Literal["keep", "update", "delete", "merge", "supersede"]

DELETED = "deleted"  # in place of a successor's id, which never reads so


def stable_id(*parts: object) -> str:
    """Hash the parts that identify a row, so that a retried task writes the same id twice.

    A part may hold the separator: it is escaped, so that no user can name another's rows.
    """
    escaped = (str(p).replace("\x1e", "\x1e\x1e").replace("\x1f", "\x1e\x1f") for p in parts)
    joined = "\x1f".join(escaped).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance, at `position` (from 0) of its session; -1 until the history is ordered.

    `source` says where it was read, as "file:line". Ordering fills `id`, compression
    `compressed` and both token counts, segmentation `segment_id`, extraction `state` and `reason`.
    """

    user_id: str
    session_id: str
    position: int
    role: str
    content: str
    said_at: int
    name: str = ""
    agent_id: str = ""
    metadata: str = ""
    source: str = ""
    id: str = ""
    compressed: str = ""
    content_tokens: int = 0
    compressed_tokens: int = 0
    segment_id: str = ""
    state: State = ""
    reason: str = ""

    @property
    def speaker(self) -> str:
        return self.name or self.role


@dataclass(frozen=True, slots=True)
class History:
    """All messages of one user in a run, oldest first. `duplicates` were dropped."""

    user_id: str
    messages: tuple[Message, ...]
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive messages of one session that share a topic."""

    messages: tuple[Message, ...]

    @property
    def tokens(self) -> int:
        return sum(m.compressed_tokens for m in self.messages)


@dataclass(frozen=True, slots=True)
class SegmentedHistory:
    """A history cut into topics, in order."""

    user_id: str
    segments: tuple[Segment, ...]
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Buffer:
    """Segments of one user that fill one LLM call.

    A history without messages gives one buffer without segments, so that its `duplicates` are
    still reported.
    """

    user_id: str
    segments: tuple[Segment, ...]
    duplicates: int = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(m for segment in self.segments for m in segment.messages)


@dataclass(frozen=True, slots=True)
class Source:
    """A message that an entry was written from, and its place."""

    session_id: str
    position: int
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """What a generator found in a buffer. `sources` index the buffer's messages, from 0. `writer`
    is stored with the entry in place of the generator's name."""

    text: str
    sources: tuple[int, ...]
    topic: str = ""
    event_at: int | None = None
    writer: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Messages of a buffer, as in `Fact`, of which a generator could not tell what they hold."""

    reason: str
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One stored memory.

    `said_at`, `position` and `metadata` (a JSON object as text, or nothing) are those of the first
    source message; `event_at` is what the text refers to, if that could be resolved. `run_id` wrote
    it, at `stored_at`. `absorbed` are the sources of the entries merged into this one;
    `superseded_by` names the successor of a tombstone, and is DELETED where there is none.
    `changed_by` is the last run that changed the entry, at `changed_at`; `gen` counts the changes.
    `vector`: float32, unit length, shape (dim,).
    """

    id: str
    user_id: str
    session_id: str
    position: int
    ordinal: int
    speaker: str
    text: str
    topic: str
    said_at: int
    event_at: int | None
    sources: tuple[Source, ...]
    agent_id: str = ""
    metadata: str = ""
    writer: str = ""
    run_id: str = ""
    stored_at: int = 0
    absorbed: tuple[Source, ...] = ()
    superseded_by: str = ""
    changed_by: str = ""
    changed_at: int = 0
    gen: int = 0
    vector: np.ndarray | None = field(default=None, repr=False)

    @property
    def active(self) -> bool:
        return not self.superseded_by

    @property
    def deleted(self) -> bool:
        """Whether it is a tombstone without a successor."""
        return self.superseded_by == DELETED

    @property
    def message_ids(self) -> set[str]:
        """Of all messages that have a part in it, also through an entry that it absorbed."""
        return {source.message_id for source in (*self.sources, *self.absorbed)}

    @property
    def order(self) -> tuple[int, str, int, int]:
        """The total order of a user's entries: equal times are ordered by place."""
        return (self.said_at, self.session_id, self.position, self.ordinal)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The outcome of a buffer: its messages with their states, and the entries written."""

    user_id: str
    messages: tuple[Message, ...]
    entries: tuple[Entry, ...]
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class UserEntries:
    """The active entries of one user, in their order."""

    user_id: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the sleep phase does with an entry, because of a later one: its `successor`.

    An entry that is merged, superseded or deleted becomes a tombstone for the successor, which says
    the same, says it anew or makes it obsolete. One that is updated gets `text`, drawn from the
    successor, and its `writer` if one is named. One that is kept has no successor: no decision
    could be had, and the reason says why. `similarity` is the cosine of the two vectors; `gen` and
    `successor_gen` are those of the two entries when this was decided.
    """

    user_id: str
    entry_id: str
    action: Action
    successor: str
    similarity: float
    reason: str
    text: str = ""
    gen: int = 0
    successor_gen: int = 0
    writer: str = ""
