"""Texts as a token classifier reads them: windows of tokens, and the words these make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex

from lightmem_core.encoders.loading import (
    load_tokenizer,
    model_config,
    special_id,
    whole_characters,
    window_of,
)
from lightmem_core.protocols import Tokenizer
from lightmem_core.sensory.joining import trimmed
from lightmem_core.sensory.vocabulary import Rules, Vocabulary
from lightmem_core.sensory.windows import Window, Windows

WINDOW = 512  # what LLMLingua-2 was trained on, whatever a model could read
COUNTED = 500_000  # words whose tokens are remembered


@dataclass(frozen=True, slots=True)
class Words:
    """The words of all windows, in order: the window, the place in its text, the name and the
    weight in tokens of each, and whether it is `known`. `judged` are the tokens that the model can
    read, `owner` their words; a word without any is unknown and has no weight."""

    window: np.ndarray
    spans: list[tuple[int, int]]
    names: list[str]
    weights: np.ndarray
    known: np.ndarray
    judged: np.ndarray
    owner: np.ndarray


@dataclass(frozen=True, slots=True)
class Reading:
    """Texts in windows. `rows` are the model's input, `ids` all tokens without special ones."""

    texts: Sequence[str]
    windows: list[Window]
    rows: list[np.ndarray]
    ids: np.ndarray
    words: Words


class Reader:
    """Cuts texts into windows and words. `counter` says how many tokens a word is worth."""

    def __init__(self, model: str, counter: Tokenizer, rules: Rules):
        self.tokenizer, roles = load_tokenizer(model)
        self.counter, self.rules = counter, rules
        unknown = special_id(roles, "unk")
        self.before, self.after = (
            [token for token in (special_id(roles, *names),) if token is not None]
            for names in (("cls", "bos"), ("sep", "eos"))
        )
        if rules.as_llmlingua and self.tokenizer.token_to_id("[CLS]") is None:
            # The package puts BERT's special tokens around every text: XLM-R does not know them.
            self.before = self.after = [] if unknown is None else [unknown]
        self.pad = special_id(roles, "pad", "eos", "unk") or 0
        self.vocabulary = Vocabulary(self.tokenizer, rules, unknown)
        room = window_of(model_config(model), WINDOW) - len(self.before) - len(self.after)
        ends = map(self.tokenizer.token_to_id, rules.chunk_end_tokens)
        self.windows = Windows(
            self.tokenizer, room, {t for t in ends if t is not None}, self.vocabulary.begins
        )
        marks = map(regex.escape, self.vocabulary.marks)
        self._marked = regex.compile("|".join(marks)) if self.vocabulary.marks else None
        self._counts: dict[str, int] = {}

    def read(self, texts: Sequence[str]) -> Reading:
        whole = whole_characters(texts)
        windows = self._windows(whole)
        ids = np.concatenate([window.ids for window in windows] or [np.zeros(0, np.int64)])
        rows = [np.array([*self.before, *w.ids.tolist(), *self.after]) for w in windows]
        return Reading(texts, windows, rows, ids, self._words(whole, windows, ids))

    def inside(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The values of all tokens, those of the special tokens of each row left out."""
        kept = [row[len(self.before) : len(row) - len(self.after)] for row in rows]
        return np.concatenate(kept or [np.zeros(0, np.float32)])

    def _windows(self, texts: Sequence[str]) -> list[Window]:
        if self._marked is None:
            return list(self.windows.of(texts))
        replaced = [self._replaced(text) for text in texts]
        return [
            Window(w.text, w.ids, _in_source(w.spans, *replaced[w.text][1:]))
            for w in self.windows.of([text for text, *_ in replaced])
        ]

    def _replaced(self, text: str) -> tuple[str, np.ndarray, np.ndarray]:
        """The text with its forced parts replaced by their marks; the places at which marks end,
        and what from there on leads back to places in the source."""
        assert self._marked is not None
        pieces, ends, back, last, length = [], [-1], [0], 0, 0
        for match in self._marked.finditer(text):
            pieces += [text[last : match.start()], self.vocabulary.marks[match[0]]]
            length += len(pieces[-2]) + len(pieces[-1])
            last = match.end()
            ends.append(length)
            back.append(last - length)
        return "".join([*pieces, text[last:]]), np.array(ends), np.array(back)

    # --- words -----------------------------------------------------------------------------------

    def _words(self, texts: Sequence[str], windows: Sequence[Window], ids: np.ndarray) -> Words:
        sizes = np.array([len(window.ids) for window in windows], np.int64)
        opens = self.vocabulary.begins[ids]
        opens[(np.cumsum(sizes) - sizes)[sizes > 0]] = True
        first, word = np.flatnonzero(opens), np.cumsum(opens) - 1
        window = np.repeat(np.arange(len(windows)), sizes)[first]
        sources: list[str] = [texts[int(windows[w].text)] for w in window.tolist()]
        holds = np.bincount(word[~self.vocabulary.blank[ids]], minlength=len(first)) > 0
        spans = self._spans(sources, windows, first)
        spans = [(a, b if some else a) for (a, b), some in zip(spans, holds.tolist(), strict=True)]
        judged = np.flatnonzero(~self.vocabulary.unknown[ids])
        owner = word[judged]
        if self.rules.as_llmlingua:
            names = self._as_written(ids[judged].tolist(), owner.tolist(), len(first))
        else:
            names = [text[a:b] for text, (a, b) in zip(sources, spans, strict=True)]
        # The mark of a space says nothing of what follows it.
        telling = owner if self.rules.as_llmlingua else owner[~self.vocabulary.blank[ids[judged]]]
        known = np.bincount(telling, minlength=len(first)) > 0
        return Words(window, spans, names, self._weights(names) * known, known, judged, owner)

    def _spans(
        self, sources: Sequence[str], windows: Sequence[Window], first: np.ndarray
    ) -> list[tuple[int, int]]:
        places = np.concatenate([w.spans for w in windows] or [np.zeros((0, 2), np.int64)])
        last = np.append(first, len(places))[1:] - 1
        spans = zip(places[first, 0].tolist(), places[last, 1].tolist(), strict=False)
        if self.vocabulary.kind == "WordPiece":
            return list(spans)
        return [trimmed(text, *span) for text, span in zip(sources, spans, strict=True)]

    def _as_written(self, ids: list[int], owner: list[int], words: int) -> list[str]:
        """Words as the tokenizer writes them: the first token with its marks, the rest without."""
        names = [""] * words
        for token, word in zip(ids, owner, strict=True):
            written = self.vocabulary.pure if names[word] else self.vocabulary.texts
            names[word] += written[token]
        return names

    def _weights(self, names: Sequence[str]) -> np.ndarray:
        if len(self._counts) > COUNTED:
            self._counts.clear()
        if missing := list({name for name in names if name not in self._counts}):
            self._counts.update(zip(missing, self.counter.count(missing), strict=True))
        return np.array([self._counts[name] for name in names], np.int64)


def _in_source(spans: np.ndarray, ends: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Places in a text with marks as places in its source; `ends` and `back` as in `_replaced`."""
    return spans + back[np.searchsorted(ends, spans, side="right") - 1]
