"""What a server's reader and writer take and give. User ids are the store's own.

Errors: StoreError where the store cannot do what is asked, NotFoundError where the user has no such
memory, RequestError where the request itself is wrong, ConflictError where things stand otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightmem_core.long_term.retrieve import Hit


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it arrives. Without `said_at` it was said now; without `position` it follows
    what its session has. `metadata` is a JSON object as text. Without `infer` it becomes an entry
    word for word. Of messages without time and position one of the same `key` is the same."""

    role: str
    content: str
    said_at: int | None = None
    name: str = ""
    agent_id: str = ""
    metadata: str = ""
    position: int | None = None
    infer: bool = True
    key: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a message, and its place in its session. A duplicate was there before."""

    message_id: str
    state: Literal["accepted", "duplicate"]
    position: int


@dataclass(frozen=True, slots=True)
class Context:
    """Memories as text for a prompt: `tokens` of the configured tokenizer, from `hits`, best
    first."""

    text: str
    tokens: int
    hits: tuple[Hit, ...]
