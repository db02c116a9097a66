"""Changes that a person or an agent makes to single entries. What they were becomes a version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lightmem_core.errors import ConflictError, NotFoundError, RequestError, StoreError
from lightmem_core.formats import fields
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.tables import now_ms, of_users, quoted, read
from lightmem_core.online.flushing import Flushing
from lightmem_core.online.origins import entries_from, to_change, to_delete
from lightmem_core.online.shared import Shared
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import DELETED, Entry, Extracted

ROUNDS = 5  # at an entry that others change at the same time
Change = Callable[[Entry], Entry]


class Changing:
    def __init__(self, shared: Shared, flushing: Flushing):
        self.shared = shared
        self.flushing = flushing

    def update(self, user_id: str, memory_id: str, text: str | None, metadata: str | None) -> Entry:
        change = self._change(text, metadata)
        entry = to_change(self._meant(user_id, memory_id), memory_id)
        return self._written(user_id, entry.id, change)

    def delete(self, user_id: str, memory_id: str) -> None:
        if self._waits(user_id, memory_id) and self._withdrawn(user_id, memory_id):
            return
        for entry in to_delete(self._meant(user_id, memory_id), memory_id):
            self._written(user_id, entry.id, _deleted)

    def _change(self, text: str | None, metadata: str | None) -> Change:
        """Raise RequestError for what no entry can hold."""
        if text is not None and not text.strip():
            raise RequestError("the text of a memory cannot be empty: delete it instead")
        try:
            said = {} if metadata is None else {"metadata": fields.metadata(metadata)}
        except fields.BadField as error:
            raise RequestError(error.detail) from None
        if text is None:
            return lambda entry: replace(entry, **said)
        return lambda entry: self._embedded(replace(entry, text=fields.clean(text), **said))

    def _embedded(self, entry: Entry) -> Entry:
        found = Extracted(entry.user_id, (), (entry,))
        return self.shared.stages.embedded(found).entries[0]

    def _written(self, user_id: str, entry_id: str, change: Change) -> Entry:
        """Raise NotFoundError if the user has no such entry. Where another change came in between,
        the entry is changed as it then is."""
        shard = self.shared.store.shard_for(user_id)
        for _ in range(ROUNDS):
            present = _active(shard, user_id, entry_id)
            if present is None:
                raise NotFoundError(f"the user has no memory {entry_id!r:.60}")
            written = replace(
                change(present),
                gen=present.gen + 1,
                changed_by=self.shared.run_id,
                changed_at=now_ms(),
            )
            with self.shared.writing(shard):
                if not shard.update(to_table([written], Entry)):
                    self.shared.count(deleted=written.deleted, updated=not written.deleted)
                    return written
        raise StoreError(f"entry {entry_id} is changed all the time: try again")

    def _waits(self, user_id: str, message_id: str) -> bool:
        found = self.shared.inbox_for(user_id).find(message_id)
        return found is not None and found.user_id == user_id

    def _withdrawn(self, user_id: str, message_id: str) -> bool:
        """Take a message out of the inbox; False if its extraction has begun or is done."""
        inbox = self.shared.inbox_for(user_id)
        with self.shared.users.held([user_id]), self.shared.writing(inbox):
            rows = inbox.rows([user_id])
            if not any(row.id == message_id and not row.batch for row in rows):
                return False
            inbox.remove([message_id])
            self.shared.backlogs.set([user_id], [row for row in rows if row.id != message_id])
            self.shared.count(withdrawn=1)
            return True

    def _meant(self, user_id: str, memory_id: str) -> list[Entry]:
        """The active entry of an id, or those that came of the message of that id, which is
        extracted now if it waits. Raise ConflictError if that fails."""
        shard = self.shared.store.shard_for(user_id)
        if entry := _active(shard, user_id, memory_id):
            return [entry]
        if self._waits(user_id, memory_id):
            self.flushing.all_of(user_id)
            if self._waits(user_id, memory_id):
                raise ConflictError("the message could not be extracted yet: try again later")
        return entries_from(shard.entries_of([user_id]), [memory_id])


def _deleted(entry: Entry) -> Entry:
    return replace(entry, superseded_by=DELETED)


def _active(shard: Shard, user_id: str, entry_id: str) -> Entry | None:
    where = f"{of_users([user_id])} AND id = {quoted(entry_id)} AND superseded_by = ''"
    found = from_table(read(shard.entries, where), Entry)
    return found[0] if found else None
