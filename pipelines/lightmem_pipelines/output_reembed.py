"""How the report of a move to another embedder looks as text."""

from __future__ import annotations

from typing import Any

from lightmem_pipelines.durations import duration


def reembed_lines(report: dict[str, Any]) -> list[str]:
    old = f"{report['old_embedder']} (dimension {report['old_dim']})"
    new = f"{report['embedder']} (dimension {report['dim']})"
    moved = f"from {old} to {new}" if old != new else f"was moved before, to {new}"
    lines = [
        f"  store       {moved}",
        f"  embedded    {report['entries']:>9,} entries, in {report['passes']} passes",
        f"            + {report['versions']:>9,} earlier versions of entries",
        f"  runtime     {duration(report['seconds'])}",
    ]
    if report["dropped"]:
        return [*lines, f"  {report['dropped']} tables of old vectors were removed"]
    return lines
