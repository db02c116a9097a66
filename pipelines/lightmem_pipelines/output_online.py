"""How the run of a server looks: what it has taken in, extracted and changed since its start."""

from __future__ import annotations

from typing import Any


def online_lines(report: dict[str, Any]) -> list[str]:
    return [f"  {name.replace('_', ' '):<12}{count:>9,}" for name, count in sorted(report.items())]
