"""The updater without an LLM: merges what is said again, supersedes what is said anew.

Both rules are narrow on purpose: an entry that is hidden wrongly cannot be found again, one that
is kept too long costs a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from lightmem_core.attributes import Attribute, attribute_of
from lightmem_core.language import FILLERS, PLEASANTRIES
from lightmem_core.protocols import UpdateQueue, Updater
from lightmem_core.types import Decision, Entry

DAY_MS = 86_400_000
JOINTS = str.maketrans("", "", "-'’")  # within words
PUNCTUATION = ".,!;:…¡¿'\"’“”„«»()"


@dataclass(frozen=True, slots=True)
class _Read:
    """What the rules look at in an entry. `core`: its words in alphabetical order, less those that
    add nothing; `signs`: numbers, symbols, and that it asks."""

    said: tuple[str, ...]
    core: tuple[str, ...]
    signs: frozenset[str]
    day: int | None
    attribute: Attribute | None


class RuleUpdater(Updater):
    """Merge an entry into a later one of the same speaker and day that says the same: equal
    words, or a cosine of at least `near` where they differ in their order, in articles and the
    like. Supersede it where a later one gives the same attribute another value: a favourite, a
    number, and, if it says that this has changed, the home or the job.
    """

    def __init__(self, near: float = 0.95):
        self.near = near

    def decide(self, queues: Sequence[UpdateQueue]) -> list[Decision | None]:
        return [self._decision(queue.entry, queue.later) for queue in queues]

    def _decision(self, entry: Entry, queue: Sequence[tuple[Entry, float]]) -> Decision | None:
        this = _read(entry)
        for later, similarity in queue:
            if later.speaker != entry.speaker or later.agent_id != entry.agent_id:
                continue
            that = _read(later)
            if reason := self._same(this, that, similarity):
                return _decision(entry, "merge", later, similarity, reason)
            if this.attribute and that.attribute and this.attribute.replaced_by(that.attribute):
                return _decision(entry, "supersede", later, similarity, this.attribute.name)
        return None

    def _same(self, this: _Read, that: _Read, similarity: float) -> str:
        if this.day != that.day:
            return ""
        if this.said == that.said:
            return "same words"
        near = similarity >= self.near and this.signs == that.signs
        return "nearly the same words" if near and this.core == that.core else ""


def _read(entry: Entry) -> _Read:
    day = None if entry.event_at is None else entry.event_at // DAY_MS
    return replace(_read_text(entry.text), day=day)


@lru_cache(maxsize=1 << 16)
def _read_text(text: str) -> _Read:
    tokens = [token for piece in text.split() if (token := piece.strip(PUNCTUATION))]
    signs = {t for t in tokens if not t.translate(JOINTS).isalpha()}
    asks = {"?"} if "?" in text else set()
    said = tuple(t.lower() for t in tokens)
    core = tuple(sorted(word for word in said if word not in FILLERS | PLEASANTRIES))
    return _Read(said, core, frozenset(signs | asks), None, attribute_of(text))


def _decision(entry: Entry, action: str, later: Entry, similarity: float, reason: str) -> Decision:
    return Decision(entry.user_id, entry.id, action, later.id, similarity, reason)  # pyright: ignore[reportArgumentType]
