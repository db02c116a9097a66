"""The updater without an LLM: merges what is said again, supersedes what is said anew.

Both rules are narrow on purpose: an entry that is hidden wrongly cannot be found again, one that
is kept too long costs a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightmem_core.attributes import Attribute, attribute_of
from lightmem_core.language import NEGATIONS, words
from lightmem_core.protocols import Updater
from lightmem_core.types import Decision, Entry

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class _Read:
    """What the rules look at in an entry."""

    words: tuple[str, ...]
    anchors: frozenset[str]
    day: int | None
    attribute: Attribute | None


class RuleUpdater(Updater):
    """Merge an entry into a later one of the same speaker that says the same: equal words, or a
    cosine of at least `near` with the same names, numbers, negations and day. Supersede it where
    a later one gives the same attribute (home, job, favourite, ...) another value.
    """

    def __init__(self, near: float = 0.95):
        self.near = near

    def decide(self, entry: Entry, queue: Sequence[tuple[Entry, float]]) -> Decision | None:
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
        if this.words == that.words:
            return "same words"
        near = similarity >= self.near and this.anchors == that.anchors
        return "nearly the same words" if near else ""


def _read(entry: Entry) -> _Read:
    day = None if entry.event_at is None else entry.event_at // DAY_MS
    return _Read(tuple(words(entry.text)), _anchors(entry.text), day, attribute_of(entry.text))


def _anchors(text: str) -> frozenset[str]:
    """The words that change what a statement says: names, numbers, negations."""
    tokens = text.split()
    names = {t.strip(".,!?;:'\"()").lower() for t in tokens[1:] if t[:1].isupper()}
    numbers = {t.strip(".,!?;:'\"()") for t in tokens if any(c.isdigit() for c in t)}
    negations = {w for w in words(text) if w in NEGATIONS or w.endswith("n't")}
    return frozenset(names | numbers | negations)


def _decision(entry: Entry, action: str, later: Entry, similarity: float, reason: str) -> Decision:
    return Decision(entry.user_id, entry.id, action, later.id, similarity, reason)  # pyright: ignore[reportArgumentType]
