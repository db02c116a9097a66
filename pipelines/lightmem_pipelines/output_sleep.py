"""How a sleep looks: what it changed, or would change."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightmem_core.long_term.render import entry_line

if TYPE_CHECKING:
    from lightmem_pipelines.examples import Example

OUTCOMES = {
    "merged": "merged into a later one that says the same",
    "superseded": "superseded by a later statement",
    "deleted": "deleted, a later one makes them obsolete",
}


def sleep_lines(report: dict[str, Any]) -> list[str]:
    """The counts of a sleep's report; what a dry run would do is told as if it were done."""
    gone = {name: report[name] for name in OUTCOMES if report[name] or name != "deleted"}
    unchanged = report["users"] - report["visited"]
    lines = [f"  entries     {report['entries']:>9,} of {report['users']:,} users"]
    if unchanged:
        lines[0] += f", {unchanged:,} of them with nothing new"
    lines += [f"            - {count:>9,} {OUTCOMES[name]}" for name, count in gone.items()]
    lines.append(f"            = {report['entries'] - sum(gone.values()):>9,} active")
    if report["updated"]:
        lines.append(f"  updated     {report['updated']:>9,} with a new text")
    if report["dropped"]:
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(report["dropped"].items()))
        lines.append(f"  dropped     {dropped}")
    if report.get("undecided"):
        kept = ", ".join(f"{n} {reason}" for reason, n in sorted(report["undecided"].items()))
        lines.append(f"  undecided   {kept}: kept as they are")
    return lines


def reason_lines(report: dict[str, Any]) -> list[str]:
    decided = report["decided"]
    if not decided:
        return []
    lines = [
        f"  {action:<12}" + ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        for action, reasons in decided.items()
    ]
    return [*lines, f"  every decision is in {report['decisions']}"]


def example_json(example: Example) -> dict[str, Any]:
    decision = example.decision
    return {
        "action": decision.action,
        "reason": decision.reason,
        "similarity": decision.similarity,
        "user_id": decision.user_id,
        "entry_id": decision.entry_id,
        "before": example.entry.text,
        "after": decision.text or None,
        "successor_id": decision.successor,
        "successor": example.successor.text,
    }


def example_text(example: Example) -> str:
    """A diff: what goes, what comes, and the later entry that it is because of."""
    decision = example.decision
    lines = [
        f"{decision.action} · {decision.reason} · user {decision.user_id}",
        f"  - {entry_line(example.entry)}",
    ]
    if decision.text:
        lines.append(f"  + {entry_line(replace(example.entry, text=decision.text))}")
    return "\n".join([*lines, f"    {entry_line(example.successor)}"])
