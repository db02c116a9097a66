"""How the history of an entry looks: as text for people, as plain values for JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from lightmem_core.long_term.render import day, entry_line, moment
from lightmem_pipelines.output import SHORT_ID, entry_json, iso

if TYPE_CHECKING:
    from lightmem_core.long_term.versions import EntryHistory
    from lightmem_core.types import Entry, Source

FIELDS = {"text": "memory", "topic": "topic", "event_at": "event_at", "superseded_by": "successor"}


def history_json(found: EntryHistory) -> dict[str, Any]:
    ends = [*(moment(version.replaced_at) for version in found.versions), None]
    states = [
        {
            "from": moment(since),
            "until": end,
            "run": _run_of(state),
            "changed": _changed(before, state) if before else {},
            "entry": entry_json(state),
        }
        for (since, before, state), end in zip(_steps(found), ends, strict=True)
    ]
    return {"entry": entry_json(found.entry), "states": states}


def _steps(found: EntryHistory) -> Iterator[tuple[int, Entry | None, Entry]]:
    """Each state: since when it held, and what it was before."""
    states = found.states
    return zip(found.since, (None, *states[:-1]), states, strict=True)


def _changed(before: Entry, after: Entry) -> dict[str, Any]:
    """What differs, as from and to; of the absorbed sources those that came and those that went."""
    changed: dict[str, Any] = {}
    for field, name in FIELDS.items():
        old, new = getattr(before, field), getattr(after, field)
        if old != new:
            shown = (iso(old), iso(new)) if field == "event_at" else (old, new)
            changed[name] = dict(zip(("from", "to"), shown, strict=True))
    for name, sources in _absorbed(before, after).items():
        changed[name] = [{"session_id": s.session_id, "position": s.position} for s in sources]
    return changed


def _absorbed(before: Entry, after: Entry) -> dict[str, list[Source]]:
    came = [s for s in after.absorbed if s not in before.absorbed]
    went = [s for s in before.absorbed if s not in after.absorbed]
    return {name: s for name, s in (("absorbed", came), ("no_longer_absorbed", went)) if s}


def history_text(found: EntryHistory) -> str:
    lines = [entry_line(found.entry), f"  id {found.entry.id} · user {found.entry.user_id}"]
    for since, before, state in _steps(found):
        lines.append(f"{moment(since)}  {_run_of(state)}")
        told = list(_told(before, state)) if before else [f"written: {state.text}"]
        lines += [f"  {line}" for line in told]
    return "\n".join(lines)


def _told(before: Entry, after: Entry) -> Iterator[str]:
    if before.text != after.text:
        yield f"text: {word_diff(before.text, after.text)}"
    if before.topic != after.topic:
        yield f"topic: {before.topic or '-'}, now {after.topic or '-'}"
    if before.event_at != after.event_at:
        yield f"about: {_day(before.event_at)}, now {_day(after.event_at)}"
    if before.metadata != after.metadata:
        yield f"metadata: {before.metadata or '-'}, now {after.metadata or '-'}"
    if before.superseded_by != after.superseded_by:
        successor = after.superseded_by[:SHORT_ID]
        replaced = "deleted" if after.deleted else f"replaced by {successor}"
        yield replaced if successor else "active again"
    for name, sources in _absorbed(before, after).items():
        places = ", ".join(f"{s.session_id} #{s.position}" for s in sources)
        yield f"{name.replace('_', ' ')}: {places}"


def word_diff(old: str, new: str) -> str:
    """The new text, with [-words that went-] and {+words that came+}."""
    before, after = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new))
    parts = []
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, came = "".join(before[i:j]), "".join(after[k:m])
        if kind == "equal":
            parts.append(came)
        else:
            parts += [f"[-{gone}-]" if gone else "", f"{{+{came}+}}" if came else ""]
    return "".join(parts)


def _run_of(state: Entry) -> str:
    return state.changed_by or state.run_id


def _day(at: int | None) -> str:
    return "-" if at is None else day(at)
