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
PUNCTUATION = ".,!;:…¡¿'\"’“”„«»()"


@dataclass(frozen=True, slots=True)
class _Read:
    """What the rules look at in an entry."""

    said: tuple[str, ...]
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
        if this.said == that.said:
            return "same words"
        near = similarity >= self.near and this.anchors == that.anchors
        return "nearly the same words" if near else ""


def _read(entry: Entry) -> _Read:
    day = None if entry.event_at is None else entry.event_at // DAY_MS
    tokens = [token for piece in entry.text.split() if (token := piece.strip(PUNCTUATION))]
    said = tuple(token.lower() for token in tokens)
    return _Read(said, _anchors(entry.text, tokens), day, attribute_of(entry.text))


def _anchors(text: str, tokens: Sequence[str]) -> frozenset[str]:
    """What changes a statement: names, numbers, symbols, negations, and that it is a question."""
    names = {t.lower() for t in tokens if t[0].isupper()}
    symbols = {t for t in tokens if any(c.isdigit() for c in t) or not any(map(str.isalpha, t))}
    negations = {w for w in words(text) if w in NEGATIONS or w.endswith("n't")}
    question = {"?"} if "?" in text else set()
    return frozenset(names | symbols | negations | question)


def _decision(entry: Entry, action: str, later: Entry, similarity: float, reason: str) -> Decision:
    return Decision(entry.user_id, entry.id, action, later.id, similarity, reason)  # pyright: ignore[reportArgumentType]
