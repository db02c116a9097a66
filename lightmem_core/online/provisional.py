"""Messages that wait, as entries: they can be found before anything is extracted from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

from lightmem_core.history import stored_history
from lightmem_core.long_term.embed import encode
from lightmem_core.long_term.render import embedding_text
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online.inbox import Inbox, Waiting
from lightmem_core.protocols import Embedder
from lightmem_core.types import Entry, Message, Source

TOPIC = "waiting"
MOST_USERS = 10_000  # that are remembered


@dataclass(frozen=True, slots=True, eq=False)
class WaitingEntry(Entry):
    """A message that waits, as an entry. `reason` says why its extraction failed, if it did."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What waits of a user, as of a version of the inbox."""

    version: int
    messages: tuple[Message, ...] = ()
    entries: tuple[WaitingEntry, ...] = ()


class Provisional:
    """What waits of each user, read again when the inbox has changed. For many threads."""

    def __init__(self, embedder: Embedder, store: MemoryStore):
        self.embedder, self.store = embedder, store
        self._inboxes = [Inbox(store.database, number) for number in range(store.shard_count)]
        self._lock = Lock()
        self._held: OrderedDict[str, Held] = OrderedDict()

    def messages(self, user_id: str) -> Sequence[Message]:
        return self._of(user_id).messages

    def entries(self, user_id: str) -> Sequence[WaitingEntry]:
        """Each message as an entry with its id, said in its words, of the topic "waiting"."""
        return self._of(user_id).entries

    def find(self, message_id: str) -> WaitingEntry | None:
        """A message that waits, of any user, without its vector."""
        found = (inbox.find(message_id) for inbox in self._inboxes)
        return next((_entry(row) for row in found if row), None)

    def version(self, number: int) -> int:
        """Of the inbox of a shard: it rises with each change."""
        return self._inboxes[number].version

    def users(self, number: int) -> set[str]:
        """Those of a shard of whom anything waits."""
        return self._inboxes[number].user_ids()

    def _of(self, user_id: str) -> Held:
        inbox = self._inboxes[self.store.shard_number(user_id)]
        version = inbox.version
        held = self._held.get(user_id)
        if held is None or held.version != version:
            held = self._read(inbox, user_id, version, held)
        with self._lock:
            self._held[user_id] = held
            self._held.move_to_end(user_id)
            if len(self._held) > MOST_USERS:
                self._held.popitem(last=False)
        return held

    def _read(self, inbox: Inbox, user_id: str, version: int, before: Held | None) -> Held:
        rows = inbox.rows([user_id]) if version else []
        if not rows:
            return Held(version)
        known = {entry.id: entry for entry in before.entries} if before else {}
        known |= {r.id: _told(known[r.id], r.reason) for r in rows if r.id in known}
        new = [_entry(row) for row in rows if row.id not in known]
        vectors = encode(self.embedder, [embedding_text(entry) for entry in new])
        known |= {e.id: replace(e, vector=v) for e, v in zip(new, vectors, strict=True)}
        messages = stored_history(row.message for row in rows).messages
        return Held(version, messages, tuple(known[message.id] for message in messages))


def _told(entry: WaitingEntry, reason: str) -> WaitingEntry:
    return entry if entry.reason == reason else replace(entry, reason=reason)


def _entry(row: Waiting) -> WaitingEntry:
    message = row.message
    return WaitingEntry(
        id=row.id,
        user_id=row.user_id,
        session_id=row.session_id,
        position=row.position,
        ordinal=0,
        speaker=message.speaker,
        text=row.content,
        topic=TOPIC,
        said_at=row.said_at,
        event_at=None,
        sources=(Source(row.session_id, row.position, row.id),),
        agent_id=row.agent_id,
        metadata=row.metadata,
        stored_at=row.accepted_at,
        reason=row.reason,
    )
