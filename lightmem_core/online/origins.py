"""What came of a message. Its id is what a client was given when it sent the message: once that is
extracted, the id stands for the entries that were written of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from lightmem_core.errors import ConflictError, NotFoundError
from lightmem_core.types import Entry


def entries_from(entries: Iterable[Entry], message_ids: Collection[str]) -> list[Entry]:
    """Of some entries those in which a message has a part, also through one that they absorbed."""
    return [entry for entry in entries if entry.message_ids & set(message_ids)]


def shown(came: Sequence[Entry]) -> Entry | None:
    """The one that is shown for a message: the first that is active."""
    return next((entry for entry in came if entry.active), came[0] if came else None)


def to_change(came: Sequence[Entry], message_id: str) -> Entry:
    """The one active entry. Raise NotFoundError if there is none, ConflictError if there are
    several."""
    if len(came) > 1:
        raise _several(came, message_id)
    if not came:
        raise NotFoundError(f"the user has no memory {message_id!r:.60}")
    return came[0]


def to_delete(came: Sequence[Entry], message_id: str) -> list[Entry]:
    """The one active entry; of several those that came of this message alone."""
    if len(came) <= 1:
        return [to_change(came, message_id)]
    alone = [entry for entry in came if entry.message_ids == {message_id}]
    if not alone:
        raise _several(came, message_id)
    return alone


def _several(came: Sequence[Entry], message_id: str) -> ConflictError:
    ids = ", ".join(entry.id for entry in came)
    return ConflictError(f"several memories came of the message {message_id}: name one of {ids}")
