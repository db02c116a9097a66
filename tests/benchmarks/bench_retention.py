"""What compression keeps of what matters, for each compressor and share r, on LoCoMo.

    make bench-retention LOCOMO=path/to/locomo10.json [TOKEN_CLASSIFIER=FOLDER] [CAUSAL=FOLDER]

answer words   of the informative words that an answer has in common with its evidence messages,
               the share that is left in these
AUC            of one decision, against the words of the observations that an LLM wrote down of a
               message, by stem, those that every sentence holds left out: 0.5 for chance. Then that
               of the ranking of words by how many r, 0.1 to 0.9, keep them
recall         evidence messages among the ten best for a question, ranked as `search` does (MiniLM
               and BM25), each message searched as it was compressed
saved          tokens, of all messages

`random` drops words without looking. Real weights are measured where a folder or name is given;
what random weights would keep says nothing. LoCoMo is not shipped (CC BY-NC 4.0).
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import snowballstemmer
from measure import environment

from lightmem_core.config import Component
from lightmem_core.encoders.minilm import MiniLMEmbedder, MiniLMTokenizer
from lightmem_core.language import COMMON_BITS, WordModel, words
from lightmem_core.long_term.ranking import UserIndex
from lightmem_core.plugins import load
from lightmem_core.protocols import Compressor
from lightmem_core.types import Entry

stem = cache(snowballstemmer.stemmer("english").stemWord)
RATES = (0.4, 0.5, 0.6, 0.7, 0.8)
RANKING = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BEST = 10


class RandomCompressor:
    """Keeps words by a hash of themselves and their place."""

    def __init__(self, rate: float):
        self.rate = rate

    def compress(self, texts: Sequence[str]) -> list[str]:
        return [self._compress(text) for text in texts]

    def _compress(self, text: str) -> str:
        pieces = text.split()
        order = sorted(range(len(pieces)), key=lambda i: zlib.crc32(f"{text}{i}".encode()))
        kept = sorted(order[: max(round(self.rate * len(pieces)), 1)])
        return " ".join(pieces[i] for i in kept) or text


@dataclass(frozen=True)
class Talk:
    """A conversation: its messages by id, the words noted of each, the questions with evidence."""

    speakers: list[str]
    texts: list[str]
    noted: list[set[str]]
    questions: list[tuple[str, str, list[int]]]


def talks(path: str) -> list[Talk]:
    return [_talk(row) for row in json.loads(Path(path).read_text(encoding="utf-8"))]


def _talk(row: dict[str, Any]) -> Talk:
    sessions = row["conversation"]
    numbers = sorted(int(k[8:]) for k in sessions if k.startswith("session_") and k[8:].isdigit())
    said = [m for n in numbers for m in sessions[f"session_{n}"] if m["text"].strip()]
    places = {m["dia_id"]: i for i, m in enumerate(said)}
    noted: list[set[str]] = [set() for _ in said]
    for session in row.get("observation", {}).values():
        for notes in session.values():
            for text, source in notes:
                for dia_id in source if isinstance(source, list) else [source]:
                    if dia_id in places:
                        noted[places[dia_id]].update(map(stem, words(text)))
    questions = [
        (q["question"], str(q["answer"]), sorted({places[e] for e in q["evidence"] if e in places}))
        for q in row["qa"]
        if "answer" in q
    ]
    return Talk(
        [m["speaker"] for m in said], [m["text"] for m in said], noted,
        [q for q in questions if q[2]],
    )  # fmt: skip


# --- measures ------------------------------------------------------------------------------------


def answer_words(talk: Talk, kept: Sequence[str], model: WordModel) -> tuple[int, int]:
    """How many of the answers' words in evidence are left, and how many there were."""
    left = total = 0
    for _, answer, evidence in talk.questions:
        asked = {w for w in words(answer) if model.bits(w, "en") >= COMMON_BITS or w.isdigit()}
        for message in evidence:
            there = asked & set(words(talk.texts[message]))
            left += len(there & set(words(kept[message])))
            total += len(there)
    return left, total


def noted_and_kept(
    talk: Talk, kept: Sequence[str], model: WordModel
) -> tuple[np.ndarray, np.ndarray]:
    """For each word of the messages of which something was noted: was it, and is it kept."""
    labels, stays = [], []
    for text, left, noted in zip(talk.texts, kept, talk.noted, strict=True):
        if not noted:
            continue
        remaining = words(left)
        for word in words(text):
            labels.append(stem(word) in noted and model.bits(word, "en") >= COMMON_BITS)
            stays.append(word in remaining)
            if stays[-1]:
                remaining.remove(word)
    return np.array(labels, bool), np.array(stays, float)


def auc(labels: np.ndarray, values: np.ndarray) -> float:
    """The probability that a word noted has a higher value than another, ties counting half."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = labels.sum()
    return float((ranks[labels].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))


def recall(talk: Talk, kept: Sequence[str], embedder: MiniLMEmbedder, asked: np.ndarray) -> float:
    lines = [f"{who}: {text}" for who, text in zip(talk.speakers, kept, strict=True)]
    vectors = embedder.encode(lines)
    entries = [
        Entry(str(i), "u", "s", i, 0, who, text, "", i, None, (), vector=vectors[i])
        for i, (who, text) in enumerate(zip(talk.speakers, kept, strict=True))
    ]
    index, found = UserIndex(entries), []
    for (question, _, evidence), vector in zip(talk.questions, asked, strict=True):
        best = set(index.rank(question, vector).best(BEST).tolist())
        found.append(len(best & set(evidence)) / len(evidence))
    return float(np.mean(found))


# --- report --------------------------------------------------------------------------------------


class Bench:
    def __init__(self, path: str):
        self.talks = talks(path)
        self.model, self.tokenizer = WordModel(("en",)), MiniLMTokenizer()
        self.embedder = MiniLMEmbedder()
        self.asked = [self.embedder.encode([q for q, *_ in t.questions]) for t in self.talks]
        self.before = sum(sum(self.tokenizer.count(t.texts)) for t in self.talks)

    def report(self, name: str, make: Any) -> None:
        ranked: list[np.ndarray] = []
        labels = np.zeros(0, bool)
        for rate in RANKING:
            kept = self._kept(make(rate))
            pairs = [
                noted_and_kept(t, k, self.model) for t, k in zip(self.talks, kept, strict=True)
            ]
            labels, stays = (np.concatenate(column) for column in zip(*pairs, strict=True))
            ranked.append(stays)
            if rate in RATES:
                self._line(name, f"{rate}", kept, auc(labels, stays))
        print(f"{name:<20}{'':>6}{'AUC of its ranking':>38}{auc(labels, sum(ranked)):>8.3f}")

    def whole(self) -> None:
        self._line("none", "1", [t.texts for t in self.talks], 0.5)

    def _kept(self, compressor: Compressor) -> list[list[str]]:
        return [compressor.compress(talk.texts) for talk in self.talks]

    def _line(self, name: str, rate: str, kept: list[list[str]], of_decision: float) -> None:
        pairs = list(zip(self.talks, kept, strict=True))
        left, total = np.sum([answer_words(t, k, self.model) for t, k in pairs], axis=0)
        found = [
            recall(t, k, self.embedder, asked)
            for (t, k), asked in zip(pairs, self.asked, strict=True)
        ]
        many = [len(t.questions) for t in self.talks]
        after = sum(sum(self.tokenizer.count(k)) for k in kept)
        shares = (left / total, np.average(found, weights=many), 1 - after / self.before)
        print(f"{name:<20}{rate:>6}{shares[0]:>14.1%}{of_decision:>10.3f}"
              f"{shares[1]:>12.1%}{shares[2]:>10.1%}", flush=True)  # fmt: skip


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: make bench-retention LOCOMO=path/to/locomo10.json")
    bench = Bench(sys.argv[1])
    print(environment())
    print(f"{sum(len(t.texts) for t in bench.talks):,} messages, {bench.before:,} tokens, "
          f"{sum(len(t.questions) for t in bench.talks):,} questions")  # fmt: skip
    print(f"{'':<20}{'r':>6}{'answer words':>14}{'AUC':>10}{f'recall@{BEST}':>12}{'saved':>10}")
    bench.whole()
    bench.report("random", RandomCompressor)
    for name, model in (
        ("self-information", None),
        ("token-classifier", os.environ.get("TOKEN_CLASSIFIER")),
        ("causal-entropy", os.environ.get("CAUSAL")),
    ):
        if model is None and name != "self-information":
            continue

        def make(rate: float, name: str = name, model: str | None = model) -> Compressor:
            options = {"rate": rate} | ({"model": model} if model else {})
            return load(
                "compressor", Component(use=name, options=options), tokenizer=bench.tokenizer
            )

        bench.report(name, make)


if __name__ == "__main__":
    main()
