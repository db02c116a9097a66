"""How the report of an undo looks as text."""

from __future__ import annotations

from typing import Any

from lightmem_pipelines.durations import duration


def undo_lines(report: dict[str, Any]) -> list[str]:
    kept = {
        f"left as later runs have them: {_by_run(report['later'])}": sum(report["later"].values()),
        "left too, but for the sources of what was restored": report["corrected"],
        "left as a write that came in between has them": report["changed_meanwhile"],
        "left: what they were is not known": report["without_version"],
    }
    restored = f"  entries     {report['restored']:>9,} restored"
    done = report["restored"] or report["corrected"]
    return [
        restored if done else "  nothing is left to change",
        *(f"              {count:>9,} {what}" for what, count in kept.items() if count),
        f"  runtime     {duration(report['seconds'])}",
    ]


def _by_run(later: dict[str, int]) -> str:
    return ", ".join(f"{count:,} of {run}" for run, count in sorted(later.items()))
