"""How the results of erase, export and import look, as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def erase_lines(report: dict[str, Any]) -> list[str]:
    files, tables = report["run_files"], report["tables"]
    searched = {
        "files": "no row of any version and no file of the tables holds the user any more",
        "rows": "no row of any version holds the user any more; an object store's files were not "
        "searched",
    }
    found = report["runs_named"] or files["rows"] or any(t["rows"] for t in tables)
    return [
        *([] if found else ["  nothing of this user was found"]),
        *(
            f"  {t['name']:<20}{t['rows']:>9,} rows gone, {t['old_versions']:,} old versions"
            for t in tables
        ),
        f"  {'files of runs':<20}{files['rows']:>9,} rows gone, {files['files']:,} files",
        f"  {'ledger':<20}{report['runs_named']:>9,} runs named the user",
        f"  {searched[report['searched']]}",
    ]


def export_text(folder: str, rows: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count:,} {kind}" for kind, count in rows.items())
    return f"exported to {folder}: {counts}"


def import_lines(report: dict[str, Any]) -> list[str]:
    return [
        f"  {kind:<10}{c['added']:>9,} added {c['renewed']:>9,} renewed {c['kept']:>9,} kept as is"
        for kind, c in report["rows"].items()
    ]
