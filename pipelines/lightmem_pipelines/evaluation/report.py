"""The figures of an evaluation, as a record and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightmem_pipelines.evaluation.rankings import BEFORE_SLEEP, COSINE, ENTRIES, FUSED, WORDS
from lightmem_pipelines.evaluation.recall import EVIDENCE_METRICS, SESSION_METRICS

DETAILED = (ENTRIES, BEFORE_SLEEP, COSINE, WORDS, FUSED)
NAME_WIDTH = 28


@dataclass(frozen=True, slots=True)
class Figures:
    """The means of a ranking's metrics, 0 to 1, over all questions and over each category's."""

    overall: dict[str, float]
    by_category: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class EvalReport:
    """`skipped` and `categories` count questions; tokens are means over context lines;
    `covered` is the share of evidence messages that any entry came from."""

    dataset: str
    path: str
    users: int
    questions: int
    skipped: dict[str, int]
    categories: dict[str, int]
    messages: int
    entries: int
    tokens_per_message: float
    tokens_per_entry: float
    covered: float
    rankings: dict[str, Figures]
    seconds: float = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def render_text(report: EvalReport) -> str:
    """The report for a person: recall in percent, a row per ranking, then by category."""
    return "\n".join((*_summary(report), *_overall(report), *_by_category(report)))


def _summary(report: EvalReport) -> Iterator[str]:
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items())
    yield f"{report.questions:,} questions to {report.users:,} users, skipped: {skipped or 'none'}"
    yield (
        f"{report.entries:,} entries of {report.tokens_per_entry:.1f} tokens, "
        f"{report.messages:,} messages of {report.tokens_per_message:.1f}; "
        f"{100 * report.covered:.1f} % of the evidence is in an entry"
    )


def _overall(report: EvalReport) -> Iterator[str]:
    rows = {name: figures.overall for name, figures in report.rankings.items()}
    yield from ("", _heading("evidence recall, %", EVIDENCE_METRICS))
    yield from (_line(name, row, EVIDENCE_METRICS) for name, row in rows.items())
    if all(SESSION_METRICS[0] in row for row in rows.values()):
        yield from ("", _heading("sessions, %", SESSION_METRICS))
        yield from (_line(name, row, SESSION_METRICS) for name, row in rows.items())


def _by_category(report: EvalReport) -> Iterator[str]:
    for name in DETAILED:
        if name not in report.rankings:
            continue
        yield from ("", _heading(name, EVIDENCE_METRICS))
        for category, row in report.rankings[name].by_category.items():
            label = f"  {category} ({report.categories[category]:,})"
            yield _line(label, row, EVIDENCE_METRICS)


def _heading(title: str, metrics: Sequence[str]) -> str:
    return f"{title:{NAME_WIDTH}}" + "".join(f"{m:>{_width(m)}}" for m in metrics)


def _line(label: str, row: Mapping[str, float], metrics: Sequence[str]) -> str:
    return f"{label:{NAME_WIDTH}}" + "".join(f"{100 * row[m]:{_width(m)}.1f}" for m in metrics)


def _width(metric: str) -> int:
    return max(len(metric), 5) + 2
