"""Benchmark files as histories with their questions, and the messages that answer each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from lightmem_core.errors import InputError
from lightmem_core.formats import FORMATS, Rejected
from lightmem_core.formats.read import read_records
from lightmem_core.history import ordered_history
from lightmem_core.long_term.objects import filesystem
from lightmem_core.types import Message

Place = tuple[str, int]  # session_id and position of a message

LOCOMO_CATEGORIES = {
    1: "multi-hop",
    2: "temporal",
    3: "open-domain",
    4: "single-hop",
    5: "adversarial",
}
BETWEEN_IDS = re.compile(r"[;,\s]+")
NO_EVIDENCE, ABSTENTION = "no evidence", "abstention"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one user's history; `gold` are the messages that answer it, at least one."""

    user_id: str
    text: str
    category: str
    gold: frozenset[Place]

    @property
    def gold_sessions(self) -> frozenset[str]:
        return frozenset(session_id for session_id, _ in self.gold)


@dataclass(frozen=True, slots=True)
class Sample:
    """One user's messages, as a backfill stores them. `skipped` counts questions by reason."""

    user_id: str
    messages: tuple[Message, ...]
    questions: tuple[Question, ...]
    skipped: Counter[str]


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """A benchmark file. It is read anew for each iteration, one history at a time."""

    dataset: str
    path: str
    timezone: tzinfo

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise InputError(f"there is no data set {self.dataset!r}: use one of {list(DATASETS)}")

    def __iter__(self) -> Iterator[Sample]:
        """Raise InputError at what cannot be read: figures of half a file would mislead."""
        try:
            system, place = filesystem(self.path)
            file = system.open_input_file(place)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.path}: {error}") from error
        with file:
            for record, source in read_records(file, self.path):
                if isinstance(record, Rejected):
                    raise InputError(f"{source}: {record.reason}, {record.detail}")
                yield from self._samples(record, source)

    def _samples(self, record: Any, source: str) -> Iterator[Sample]:
        key, questions = DATASETS[self.dataset]
        if not isinstance(record, dict) or key not in record:
            raise InputError(
                f"{source} has no {key!r}, so {self.path} is no {self.dataset} file: "
                f"name the data set that it holds, one of {list(DATASETS)}"
            )
        parsed = FORMATS[self.dataset](record, source, self.timezone)
        read = [item for item in parsed if isinstance(item, Message)]
        if read:
            history = ordered_history(read)
            skipped: Counter[str] = Counter()
            asked = tuple(questions(record, history.messages, skipped))
            yield Sample(history.user_id, history.messages, asked, skipped)


def locomo_questions(
    record: dict[str, Any], messages: Sequence[Message], skipped: Counter[str]
) -> Iterator[Question]:
    """Evidence that names no message is ignored; a question left without any is skipped."""
    said = {_metadata(m).get("dia_id"): (m.session_id, m.position) for m in messages}
    for item in record.get("qa") or ():
        named = (BETWEEN_IDS.split(evidence) for evidence in item.get("evidence") or ())
        gold = frozenset(said[i] for ids in named for i in ids if i in said)
        if not gold:
            skipped[NO_EVIDENCE] += 1
            continue
        category = LOCOMO_CATEGORIES.get(item["category"], str(item["category"]))
        yield Question(messages[0].user_id, str(item["question"]), category, gold)


def longmemeval_questions(
    record: dict[str, Any], messages: Sequence[Message], skipped: Counter[str]
) -> Iterator[Question]:
    """Gold are user turns with has_answer, as the benchmark's own retrieval figures have it."""
    if str(record.get("question_id")).endswith("_abs"):
        skipped[ABSTENTION] += 1
        return
    answers = (m for m in messages if m.role == "user" and _metadata(m).get("has_answer") is True)
    gold = frozenset((m.session_id, m.position) for m in answers)
    if not gold:
        skipped[NO_EVIDENCE] += 1
        return
    category = str(record.get("question_type"))
    yield Question(messages[0].user_id, str(record["question"]), category, gold)


def _metadata(message: Message) -> dict[str, Any]:
    return json.loads(message.metadata) if message.metadata else {}


Questions = Callable[[dict[str, Any], Sequence[Message], Counter[str]], Iterator[Question]]

# For each data set: a key that every item of its file has, and who reads its questions.
DATASETS: dict[str, tuple[str, Questions]] = {
    "locomo": ("conversation", locomo_questions),
    "longmemeval": ("haystack_sessions", longmemeval_questions),
}
