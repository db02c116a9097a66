"""Session starts found in histories whose session breaks are hidden from the segmenter.

    make bench-segment LOCOMO=path/to/locomo10.json [EMBEDDER=FOLDER]

Three kinds of history: LoCoMo as it is; sessions of two conversations in turn under one user, with
speakers named by role, until the shorter one has no more; and the same without the first and last
three messages of each session, so that no greeting gives a start away. Gold are the starts of
sessions. A hit is exact; WindowDiff (0 is best) slides a window of half a session and counts where
the number of starts in it is wrong. The default is also chosen anew with two conversations left
out, and tried on these two alone. Where the package wordllama is installed, its vectors are tried
beside MiniLM's. `EMBEDDER` is the folder of one more embedding model: the mean of its last states
is tried, too.

LoCoMo is not shipped (CC BY-NC 4.0).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measure import environment
from remembered import MINILM, RememberedReader, embedders

from lightmem_core.formats import Rejected, parse_file
from lightmem_core.history import ordered_history
from lightmem_core.protocols import Segmenter
from lightmem_core.sensory.attention import AttentionSegmenter
from lightmem_core.sensory.segment import FixedSegmenter
from lightmem_core.sensory.valley import ValleySegmenter
from lightmem_core.types import Message

Session = Sequence[Message]
MARGIN = 3  # messages left out at both ends of a session, with its greetings
LONG_ENOUGH = 10


@dataclass(frozen=True)
class Hidden:
    """A history as one session, where its sessions start in truth, and whose it is made of."""

    messages: tuple[Message, ...]
    starts: frozenset[int]
    of: frozenset[int]

    @property
    def half(self) -> int:
        """Half the mean length of a session, the window of WindowDiff."""
        return max(round(len(self.messages) / (len(self.starts) + 1) / 2), 2)


# --- histories ---------------------------------------------------------------------------------


def conversations(path: str) -> list[list[Session]]:
    """The sessions of each user of a file, in order."""
    users: dict[str, list[Message]] = {}
    with open(path, "rb") as file:
        for message in parse_file(file, path):
            if not isinstance(message, Rejected):
                users.setdefault(message.user_id, []).append(message)
    histories = [ordered_history(messages).messages for messages in users.values()]
    return [[tuple(s) for _, s in groupby(h, lambda m: m.session_id)] for h in histories]


def hidden(sessions: Sequence[Session], *of: int) -> Hidden:
    messages = chain.from_iterable(sessions)
    joined = tuple(replace(m, session_id="one", position=k) for k, m in enumerate(messages))
    ends = np.cumsum([len(session) for session in sessions])
    return Hidden(joined, frozenset(ends[:-1].tolist()), frozenset(of))


def in_turn(first: list[Session], second: list[Session]) -> list[Session]:
    """A session of the first, one of the second, and so on, until one has no more; speakers are
    named by role."""
    found = chain.from_iterable(zip(first, second, strict=False))
    return [tuple(replace(m, name="") for m in session) for session in found]


def without_ends(sessions: list[Session]) -> list[Session]:
    return [session[MARGIN:-MARGIN] for session in sessions if len(session) >= LONG_ENOUGH]


def kinds(found: list[list[Session]]) -> dict[str, list[Hidden]]:
    pairs = [(i, (i + 1) % len(found)) for i in range(len(found))]
    inner = [without_ends(sessions) for sessions in found]
    return {
        "as it is": [hidden(sessions, i) for i, sessions in enumerate(found)],
        "in turn": [hidden(in_turn(found[i], found[j]), i, j) for i, j in pairs],
        "without greetings": [hidden(in_turn(inner[i], inner[j]), i, j) for i, j in pairs],
    }


# --- segmenters -----------------------------------------------------------------------------


def valley(**options: object) -> ValleySegmenter:
    found = ValleySegmenter(**options)  # pyright: ignore[reportArgumentType]
    found.reader, found.minilm = RememberedReader(layers=found.reader.layers), MINILM
    return found


def rules(**options: object) -> AttentionSegmenter:
    found = AttentionSegmenter(embedder=embedders()["MiniLM"], **options)  # pyright: ignore[reportArgumentType]
    found.reader = RememberedReader(layers=found.reader.layers)
    return found


def compared() -> dict[str, Callable[[], Segmenter]]:
    named: dict[str, Callable[[], Segmenter]] = {
        "every 20 messages": lambda: FixedSegmenter(20),
        "attention alone (B1)": lambda: rules(mode="attention"),
        "similarity alone (B2), tau 0.2": lambda: rules(mode="similarity", tau=0.2),
        "similarity alone (B2), tau 0.4": lambda: rules(mode="similarity", tau=0.4),
        "paper (B1 and B2), tau 0.2": lambda: rules(mode="paper", tau=0.2),
        "paper (B1 and B2), tau 0.4": lambda: rules(mode="paper", tau=0.4),
        "tolerant": lambda: rules(mode="tolerant"),
        "valley": valley,
        "valley, similarity alone": lambda: valley(attention=0),
        "valley, last layer alone": lambda: valley(early=0),
        "valley, spread instead of depth": lambda: valley(depth=None),
    }
    for name, embedder in embedders().items():
        named[f"valley, spread, {name}"] = lambda e=embedder: valley(depth=None, embedder=e)
    return named


# --- scores ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    hits: int = 0
    cut: int = 0
    starts: int = 0
    wrong: tuple[float, ...] = ()  # WindowDiff of each history

    def __add__(self, other: Score) -> Score:
        return Score(
            self.hits + other.hits,
            self.cut + other.cut,
            self.starts + other.starts,
            self.wrong + other.wrong,
        )

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(self.cut + self.starts, 1)

    def __str__(self) -> str:
        precision, recall = self.hits / max(self.cut, 1), self.hits / max(self.starts, 1)
        return f"{precision:6.2f}{recall:6.2f}{self.f1:7.3f}{np.mean(self.wrong):6.2f}"


def score(segmenter: Segmenter, histories: Sequence[Hidden]) -> list[Score]:
    found = segmenter.cut([history.messages for history in histories])
    return [
        Score(len(h.starts & set(cuts)), len(cuts), len(h.starts), (window_diff(h, cuts),))
        for h, cuts in zip(histories, found, strict=True)
    ]


def window_diff(history: Hidden, cuts: Sequence[int]) -> float:
    size, width = len(history.messages), history.half

    def inside(places: Sequence[int]) -> np.ndarray:
        upto = np.cumsum(np.bincount(np.array(places, np.int64), minlength=size + 1))
        return upto[width:size] - upto[: size - width]

    return float((inside(sorted(history.starts)) != inside(cuts)).mean())


def total(scores: Sequence[Score]) -> Score:
    return sum(scores, Score())


def held_back(found: dict[str, list[Hidden]]) -> dict[str, Score]:
    """The default's settings chosen without two conversations, tried on what holds these alone."""
    grid = [
        {"early": early, "attention": attention, "depth": depth}
        for early, attention, depth in product(
            (0, 2), (0.2, 0.3, 0.4), (0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
        )
    ]
    scored = [
        {kind: score(valley(**options), histories) for kind, histories in found.items()}
        for options in grid
    ]
    sums = dict.fromkeys(found, Score())
    for pair in [history.of for history in found["in turn"]]:
        seen = {k: [i for i, h in enumerate(hs) if not h.of & pair] for k, hs in found.items()}
        held = {k: [i for i, h in enumerate(hs) if h.of <= pair] for k, hs in found.items()}
        best = max(scored, key=lambda s: sum(total([s[k][i] for i in seen[k]]).f1 for k in seen))
        sums = {k: sums[k] + total([best[k][i] for i in held[k]]) for k in sums}
    return sums


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: make bench-segment LOCOMO=path/to/locomo10.json")
    found = kinds(conversations(sys.argv[1]))
    print(environment())
    for kind, histories in found.items():
        messages, starts = (sum(len(x) for x in of) for of in zip(
            *((h.messages, h.starts) for h in histories), strict=True))  # fmt: skip
        print(f"{kind}: {len(histories)} histories, {messages:,} messages, {starts} session starts")
    print(f"{'':34}" + "".join(f"  | {kind:^25}" for kind in found))
    print(f"{'':34}" + "  |   prec   rec     F1  WDiff" * len(found))
    for name, make in compared().items():
        print(f"{name:34}" + "".join(f"  | {total(score(make(), h))}" for h in found.values()))
    print(
        f"{'valley, chosen on others':34}" + "".join(f"  | {s}" for s in held_back(found).values())
    )


if __name__ == "__main__":
    main()
