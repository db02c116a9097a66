"""How results look: as text for people, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lightmem_core.long_term.render import entry_line
from lightmem_pipelines.durations import duration
from lightmem_pipelines.output_data import erase_lines, import_lines
from lightmem_pipelines.output_llm import call_lines, retry_lines
from lightmem_pipelines.output_online import online_lines
from lightmem_pipelines.output_reembed import reembed_lines
from lightmem_pipelines.output_sleep import reason_lines, sleep_lines
from lightmem_pipelines.output_undo import undo_lines

if TYPE_CHECKING:
    from lightmem_core.long_term.provenance import Provenance
    from lightmem_core.long_term.retrieve import Hit
    from lightmem_core.long_term.runs import Run
    from lightmem_core.types import Entry, Message

SHORT_ID = 12


def iso(at: int | None) -> str | None:
    """UTC milliseconds as ISO 8601."""
    if at is None:
        return None
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="seconds")


def entry_json(entry: Entry) -> dict[str, Any]:
    def places(sources: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"session_id": s.session_id, "position": s.position} for s in sources]

    return {
        "id": entry.id,
        "user_id": entry.user_id,
        "memory": entry.text,
        "speaker": entry.speaker,
        "topic": entry.topic,
        "said_at": iso(entry.said_at),
        "event_at": iso(entry.event_at),
        "stored_at": iso(entry.stored_at),
        "session_id": entry.session_id,
        "agent_id": entry.agent_id,
        "sources": places((*entry.sources, *entry.absorbed)),
        "writer": entry.writer,
        "run_id": entry.run_id,
        "superseded_by": entry.superseded_by,
        "changed_by": entry.changed_by,
    }


def hit_json(hit: Hit) -> dict[str, Any]:
    parts = {name: getattr(hit, name) for name in ("cosine", "window", "bm25", "speaker")}
    return {**entry_json(hit.entry), "score": hit.score, "score_parts": parts}


def hits_text(hits: Sequence[Hit], user: str) -> str:
    if not hits:
        return f"no memories of {user!r} were found"
    return "\n".join(f"{hit.score:6.2f}  {entry_text(hit.entry)}" for hit in hits)


def entry_text(entry: Entry) -> str:
    event = f" · about {_day(entry.event_at)}" if entry.event_at is not None else ""
    again = f" · said {1 + len(entry.absorbed)} times" if entry.absorbed else ""
    return f"{entry_line(entry)}\n        {entry.id[:SHORT_ID]} · {entry.topic}{event}{again}"


def provenance_json(found: Provenance) -> dict[str, Any]:
    return {
        "entry": entry_json(found.entry),
        "messages": [message_json(message) for message in found.messages],
        "replaced": [entry_json(entry) for entry in found.replaced],
        "successor": entry_json(found.successor) if found.successor else None,
    }


def message_json(message: Message) -> dict[str, Any]:
    return {
        "session_id": message.session_id,
        "position": message.position,
        "role": message.role,
        "name": message.name,
        "said_at": iso(message.said_at),
        "content": message.content,
        "source": message.source,
    }


def provenance_text(found: Provenance) -> str:
    entry = found.entry
    lines = [
        entry_line(entry),
        f"  id {entry.id} · user {entry.user_id}",
        f"  written by {entry.writer} in {entry.run_id}, stored {iso(entry.stored_at)}",
        f"  topic {entry.topic or '-'} · about {_day(entry.event_at)}",
        "from the messages",
        *(
            f"  {m.session_id} #{m.position}, {iso(m.said_at)}, {m.speaker}: {m.content}\n"
            f"    {m.source}"
            for m in found.messages
        ),
    ]
    if found.replaced:
        lines += ["it replaced", *(f"  {entry_text(e)} · {e.changed_by}" for e in found.replaced)]
    if found.successor is not None:
        lines += [f"replaced in {entry.changed_by} by", f"  {entry_text(found.successor)}"]
    return "\n".join(lines)


def run_json(run: Run) -> dict[str, Any]:
    return {
        "run": run.id,
        "kind": run.kind,
        "status": run.status,
        "started_at": iso(run.started_at),
        "finished_at": iso(run.finished_at) if run.finished_at else None,
        "request": run.request,
        **run.report,
    }


def runs_text(runs: Sequence[Run]) -> str:
    return "\n".join(f"{run.id}  {run.status:8}  {iso(run.started_at)}" for run in runs)


def run_text(run: Run) -> str:
    head = f"{run.kind} {run.status}: {run.id}"
    if "error" in run.report:
        return f"{head}\n  {run.report['error']}"
    bodies = {
        "backfill": _backfill_lines,
        "retry": _backfill_lines,
        "sleep": _sleep_lines,
        "reembed": reembed_lines,
        "undo": undo_lines,
        "erase": erase_lines,
        "import": import_lines,
        "online": online_lines,
    }
    body = bodies.get(run.kind)
    tail = [f"apply it with `lightmem sleep --apply {run.id}`"] if run.status == "planned" else []
    tail += retry_lines(run.id, run.report)
    return "\n".join([head, *(body(run.report) if body and run.report else []), *tail])


def _backfill_lines(report: dict[str, Any]) -> list[str]:
    messages = report["messages"]
    bad = messages["quarantined"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items()))
    share = report["tokens_after"] / max(report["tokens_before"], 1)
    lines = [
        f"  messages    {messages['read']:>9,} read",
        f"            = {messages['stored']:>9,} stored",
        f"            + {messages['no_facts']:>9,} without facts",
        f"            + {messages['duplicate']:>9,} duplicate (in the input, or stored before)",
        f"            + {sum(bad.values()):>9,} quarantined{f' ({reasons})' if bad else ''}",
        f"  entries     {report['entries']:>9,} new, of {report['users']:,} users",
        f"  tokens      {report['tokens_before']:>9,} before compression, "
        f"{report['tokens_after']:,} after ({share:.0%}), in {report['segments']:,} segments",
        *_llm_lines(report),
    ]
    lines += _step_lines(report)
    if bad:
        lines.append(f"  the quarantined rows are in {report['quarantine']}")
    return lines


def _sleep_lines(report: dict[str, Any]) -> list[str]:
    lines = [*sleep_lines(report), *_llm_lines(report), *_step_lines(report), *reason_lines(report)]
    return lines if report["applied"] else [*lines, "  nothing is changed yet"]


def _step_lines(report: dict[str, Any]) -> list[str]:
    return [
        f"    {name:<10}{int(step['rows']):>9,} rows {step['seconds']:>9.1f} s"
        for name, step in report.get("steps", {}).items()
    ]


def _llm_lines(report: dict[str, Any]) -> list[str]:
    """The columns of the paper's tables, and what was paid for them."""
    llm = report["llm"]
    columns = ("summary_in", "summary_out", "update_in", "update_out", "total")
    tokens = " · ".join(f"{name.replace('_', ' ')} {llm[name]:,}" for name in columns)
    return [
        f"  LLM tokens  {tokens} · {llm['calls']:,} calls",
        *call_lines(report),
        f"  runtime     {duration(report['seconds'])}",
    ]


def _day(at: int | None) -> str:
    return (iso(at) or "-")[:10]
