"""Rank the entries of one user for a query, exactly and without a model in the path.

An entry is judged together with its neighbours in the session, whose weight halves with each
step: a short answer is found by the question before it. Two scores, each standardised over the
user's entries, are added: the cosine, and BM25 over the line that is shown. BM25 counts less where
it is about little: where even the best entry holds hardly any of what the query's words weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat

import numpy as np
import regex

from lightmem_core.language import WordModel, words
from lightmem_core.long_term.embed import vectors_of
from lightmem_core.long_term.render import day
from lightmem_core.types import Entry

SAMPLE = 400  # of a user's different words, from all of their time, at most tell their language
STEMMERS = {
    "en": "english",
    "de": "german",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "pt": "portuguese",
    "nl": "dutch",
}
SATURATION = 1.2  # BM25's k1
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}]")


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of the ranking; `make bench-ranking` chooses them with a conversation held out.

    `reach` neighbours are read on each side, each step weighing `decay` times the one before. BM25
    counts fully from where the best entry holds `full_coverage` of a query's weight; its b is
    `length_weight`, low because entries are short and alike. Who spoke weighs `speaker` deviations.
    """

    reach: int = 3
    decay: float = 0.5
    full_coverage: float = 0.2
    length_weight: float = 0.3
    speaker: float = 1.0

    @property
    def window(self) -> np.ndarray:
        return self.decay ** np.abs(np.arange(-self.reach, self.reach + 1))


SHIPPED = Settings()


@dataclass(frozen=True, slots=True)
class Scores:
    """One value per entry, higher is better. Only `cosine` compares across queries.

    `window` is the cosine and `bm25` the word score, both of the entry with its neighbours;
    `speaker` is 1 where the query names who spoke. `total` ranks; it is -inf for tombstones.
    """

    total: np.ndarray
    cosine: np.ndarray
    window: np.ndarray
    bm25: np.ndarray
    speaker: np.ndarray

    def best(self, k: int) -> np.ndarray:
        """Indices of the k best entries, best first; ties keep the order of the entries."""
        order = np.argsort(-self.total, kind="stable")
        return order[np.isfinite(self.total[order])][:k]


class UserIndex:
    """The entries of one user, ready to be ranked. `entries` is in `Entry.order`, as are scores.

    Tombstones are never found. One that was merged is still scored where it was said, and lends
    its score to its heir: consolidating makes nothing harder to find. Every entry needs its
    vector. `model` weighs the words of a query: a word that is common in its language says little,
    however rare the user's entries make it.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        model: WordModel | None = None,
        settings: Settings = SHIPPED,
    ):
        heirs = _heirs(entries)
        kept = (entry for entry in entries if entry.id in heirs)
        self.entries = sorted(kept, key=lambda entry: entry.order)
        places = {entry.id: place for place, entry in enumerate(self.entries)}
        self._heirs = np.array([places[heirs[e.id]] for e in self.entries], dtype=np.int64)
        self.model = model or WordModel()
        self.settings, self._window = settings, settings.window
        self._vectors = vectors_of(self.entries)
        self._slots, self._width = _slots(self.entries, settings.reach)
        names = {name: frozenset(words(name)) for name in {e.speaker for e in self.entries}}
        self._speakers = [names[entry.speaker] for entry in self.entries]
        self._index()

    def rank(self, query_text: str, query_vector: np.ndarray) -> Scores:
        """Score every entry. `query_vector` is unit length, made by the entries' embedder."""
        if not self.entries:
            nothing = np.zeros(0)
            return Scores(nothing, nothing, nothing, nothing, nothing)
        cosine = self._vectors @ query_vector
        window, (bm25, coverage) = self._spread(cosine), self._bm25(query_text)
        asked = set(words(query_text))
        speaker = np.array([float(not asked.isdisjoint(names)) for names in self._speakers])
        counted = min(coverage / self.settings.full_coverage, 1.0)
        total = standard(window) + counted * standard(bm25)
        total = self._inherited(total + self.settings.speaker * total.std() * speaker)
        return Scores(total, cosine, window, bm25, speaker)

    def _index(self) -> None:
        """Fill the postings: per term the entries that hold it, with BM25's tf over length norm."""
        lines = [_line(entry) for entry in self.entries]
        spoken = list(chain.from_iterable(lines))
        different = list(dict.fromkeys(spoken))
        self._language = self.model.language_of(different[:: len(different) // SAMPLE + 1])
        terms = list(map(_terms, spoken, repeat(self._language)))
        row = np.repeat(np.repeat(np.arange(len(lines)), _lengths(lines)), _lengths(terms))
        flat = np.fromiter(chain.from_iterable(terms), np.int64, len(row))
        self._vocabulary, meant = np.unique(flat, return_inverse=True)
        size = max(len(lines), 1)
        keys, counts = np.unique(meant * size + row, return_counts=True)
        self._holders = keys % size
        self._bounds = np.searchsorted(keys // size, np.arange(len(self._vocabulary) + 1))
        b = self.settings.length_weight
        lengths = np.bincount(row, minlength=size)
        norm = 1 - b + b * lengths / max(lengths.mean(), 1)
        self._frequency = counts / np.take(norm, self._holders)

    def _inherited(self, total: np.ndarray) -> np.ndarray:
        """Each heir with the best score of what was merged into it, tombstones with -inf."""
        handed = np.full(len(total), -np.inf)
        np.maximum.at(handed, self._heirs, total)
        return handed

    def _bm25(self, query: str) -> tuple[np.ndarray, float]:
        """BM25 with neighbours' words counted in, and the share of the query that the best holds.

        A word weighs its idf times its bits squared.
        """
        asked = list(dict.fromkeys(words(query)))
        language = self.model.language_of(asked)
        score, weight_of_query = np.zeros(len(self.entries)), 0.0
        for word in asked:
            bits = self.model.bits(word, language)
            for term in _terms(word, self._language):
                near, held = self._near(term)
                weight = bits**2 * np.log1p((len(self.entries) - held + 0.5) / (held + 0.5))
                score += weight * near / (near + SATURATION)
                weight_of_query += weight
        return score, float(score.max() / weight_of_query) if weight_of_query else 0.0

    def _near(self, term: int) -> tuple[np.ndarray, int]:
        """How often a term stands in or near each entry, and in how many it stands."""
        frequency = np.zeros(len(self.entries))
        found = int(np.searchsorted(self._vocabulary, term))
        if found == len(self._vocabulary) or self._vocabulary[found] != term:
            return frequency, 0
        span = slice(self._bounds[found], self._bounds[found + 1])
        frequency[self._holders[span]] = self._frequency[span]
        return self._spread(frequency), span.stop - span.start

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """Add to each entry's value those of its neighbours, by the weights of the window."""
        line = np.zeros(self._width)
        line[self._slots] = values
        return np.convolve(line, self._window, mode="same")[self._slots]


def _lengths(groups: Sequence[Sequence[object]]) -> np.ndarray:
    return np.fromiter(map(len, groups), np.int64, len(groups))


def _heirs(entries: Sequence[Entry]) -> dict[str, str]:
    """By id, the active entry that an entry was merged into, or itself. What was superseded, and
    has therefore not handed on its sources, has none."""
    by_id = {entry.id: entry for entry in entries}
    heirs = {}
    for entry in entries:
        heir: Entry | None = entry
        while heir is not None and heir.superseded_by:
            successor = by_id.get(heir.superseded_by)
            heir = successor if successor and _holds(successor, heir) else None
        if heir is not None:
            heirs[entry.id] = heir.id
    return heirs


def _holds(successor: Entry, entry: Entry) -> bool:
    handed_on = {*entry.sources} <= {*successor.sources, *successor.absorbed}
    return handed_on and successor.order > entry.order  # a cycle would have no end


def _slots(entries: Sequence[Entry], reach: int) -> tuple[np.ndarray, int]:
    """Places on a line where sessions lie too far apart to reach each other, and its length."""
    sessions: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        sessions.setdefault(entry.session_id, []).append(index)
    slots = np.zeros(len(entries), dtype=np.int64)
    start = reach
    for members in sessions.values():
        slots[members] = np.arange(start, start + len(members))
        start += len(members) + reach
    return slots, start + reach


def _line(entry: Entry) -> list[str]:
    """The words of the line that shows an entry, and of the day that it speaks of."""
    days = {day(entry.said_at): None}
    if entry.event_at is not None:
        days[day(entry.event_at)] = None
    return words(" ".join((*days, entry.speaker, entry.text)))


@lru_cache(maxsize=1 << 16)
def _terms(word: str, language: str) -> tuple[int, ...]:
    """What a word is looked up by: the hash, this process's, of its stem, or of pairs of characters
    where no spaces are written."""
    if _UNSPACED.search(word):
        return tuple(hash(word[i : i + 2]) for i in range(max(len(word) - 1, 1)))
    bare = max(word.split("'"), key=len)
    return (hash(stem(bare, STEMMERS[language]) if language in STEMMERS else bare),)


def stem(word: str, language: str) -> str:
    """For many threads: a stemmer holds the word that it is at, so each word has its own."""
    import snowballstemmer

    return snowballstemmer.stemmer(language).stemWord(word)


def standard(values: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1; all 0 where every value is the same."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros_like(values)
