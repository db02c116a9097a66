"""From a run's report to its plots. What a report has no plot for is shown as it is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lightmem_serve.explorer.plots import Part, bars, whole

Report = Mapping[str, Any]
STATES = {
    "stored": "c1",
    "no_facts": "c5",
    "duplicate": "c2",
    "quarantined": "bad",
}
TOKENS = {
    "summary_in": "read to write memories",
    "summary_out": "memories written",
    "update_in": "read to decide",
    "update_out": "decisions written",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its heading, and a line that says what it shows."""

    title: str
    drawn: Markup
    note: str = ""


def plots(report: Report) -> list[Plot]:
    """Those that a report has the numbers for."""
    makers = (_messages, _quarantined, _tokens, _slept, _reasons, _seconds, _asked, _counts)
    return [plot for make in makers for plot in make(report)]


def facts(report: Report) -> list[tuple[str, int | float]]:
    """The numbers that stand for a run."""
    names = {
        "users": "users",
        "entries": "memories",
        "segments": "topic segments",
        "restored": "restored",
        "changed": "changed",
    }
    return [(names[name], report[name]) for name in names if _is_number(report.get(name))]


def _messages(report: Report) -> Iterator[Plot]:
    found = report.get("messages")
    if not isinstance(found, Mapping):
        return
    counts = {name: _total(found.get(name, 0)) for name in STATES}
    parts = [Part(name.replace("_", " "), counts[name], kind=STATES[name]) for name in STATES]
    note = f"{_total(found.get('read', 0)):,} were read; each ended in one state."
    yield Plot("What became of the messages", whole("What became of the messages", parts), note)


def _quarantined(report: Report) -> Iterator[Plot]:
    found = report.get("messages")
    reasons = found.get("quarantined") if isinstance(found, Mapping) else None
    if isinstance(reasons, Mapping) and reasons:
        yield _ranked("Why messages were set aside", reasons, "bad")


def _tokens(report: Report) -> Iterator[Plot]:
    before, after = (_total(report.get(name)) for name in ("tokens_before", "tokens_after"))
    if not before:
        return
    parts = [Part("as said", before, kind="c5"), Part("compressed", after, kind="c1")]
    note = f"{after / before:.0%} of the tokens carry what is kept."
    yield Plot("Tokens of the messages", bars("Tokens of the messages", parts), note)


def _slept(report: Report) -> Iterator[Plot]:
    names = ("merged", "superseded", "deleted")
    if not all(_is_number(report.get(name)) for name in (*names, "entries")):
        return
    gone = [report[name] for name in names]
    kinds = dict(zip(names, ("c2", "c4", "bad"), strict=True))
    held = Part("still held", report["entries"] - sum(gone), kind="c1")
    parts = [held, *(Part(name, report[name], kind=kinds[name]) for name in names)]
    updated = report.get("updated", 0)
    note = f"{updated:,} got a new text." if updated else "No text was rewritten."
    yield Plot("What became of the memories", whole("What became of the memories", parts), note)


def _reasons(report: Report) -> Iterator[Plot]:
    decided = report.get("decided")
    if not isinstance(decided, Mapping):
        return
    counts = {
        f"{action}: {reason}": count
        for action, reasons in decided.items()
        for reason, count in reasons.items()
    }
    if counts:
        yield _ranked("Why", counts, "c4")


def _seconds(report: Report) -> Iterator[Plot]:
    steps = report.get("steps")
    if not isinstance(steps, Mapping) or not steps:
        return
    spent = {name: float(step.get("seconds", 0)) for name, step in steps.items()}
    parts = [Part(name, value, f"{value:,.1f} s", "c3") for name, value in spent.items()]
    note = "Of all actors together; steps run side by side."
    yield Plot("Seconds of work by step", bars("Seconds of work by step", parts), note)


def _asked(report: Report) -> Iterator[Plot]:
    spent = report.get("llm")
    if not isinstance(spent, Mapping) or not spent.get("calls"):
        return
    parts = [Part(said, _total(spent.get(name, 0)), kind="c2") for name, said in TOKENS.items()]
    note = f"{_total(spent['calls']):,} calls."
    yield Plot("Tokens of the language model", bars("Tokens of the language model", parts), note)


def _counts(report: Report) -> Iterator[Plot]:
    """A report that is numbers and nothing else, such as a server's."""
    if report and all(_is_number(value) for value in report.values()):
        yield _ranked("What was done", report, "c1")


def _ranked(title: str, counts: Mapping[str, Any], kind: str) -> Plot:
    ordered = sorted(counts.items(), key=lambda item: (-_total(item[1]), item[0]))
    parts = [Part(name.replace("_", " "), _total(count), kind=kind) for name, count in ordered]
    return Plot(title, bars(title, parts))


def _total(value: Any) -> float:
    """A number, or the sum of those that it is made of."""
    if isinstance(value, Mapping):
        return sum(map(_total, value.values()))
    return value if _is_number(value) else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
