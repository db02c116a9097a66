"""An updater of one's own, by import path: in a run every kind of decision is made."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from lightmem_core.long_term.rules import RuleUpdater
from lightmem_core.protocols import UpdateQueue
from lightmem_core.types import Decision


class EveryAction(RuleUpdater):
    """Merges and supersedes as the rules do. Of what these keep, some entries are deleted and some
    are rewritten: which, and how, their text alone says."""

    def decide(self, queues: Sequence[UpdateQueue]) -> list[Decision | None]:
        ruled = zip(queues, super().decide(queues), strict=True)
        return [decision or _by_text(queue) for queue, decision in ruled]


def _by_text(queue: UpdateQueue) -> Decision | None:
    entry, (later, similarity) = queue.entry, queue.later[0]
    chosen = crc32(entry.text.encode()) % 3
    if chosen == 2:
        return None
    action, text = (("delete", ""), ("update", f"{entry.text} {later.text}"))[chosen]
    return Decision(entry.user_id, entry.id, action, later.id, similarity, "by its text", text)
