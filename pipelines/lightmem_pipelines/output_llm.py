"""How a plan looks, and what was paid for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightmem_pipelines.durations import duration

FAILURES = ("llm_", "too_long")  # how the reasons start

if TYPE_CHECKING:
    from lightmem_pipelines.estimate import Estimate
    from lightmem_pipelines.plan import Plan


def call_lines(report: dict[str, Any]) -> list[str]:
    """What the calls of a run took, beside their tokens; nothing of a run without any."""
    llm = report["llm"]
    if not llm["calls"]:
        return []
    tokens_in = llm["summary_in"] + llm["update_in"]
    parts = [
        f"{llm['call_seconds'] / llm['calls']:.1f} s each",
        f"{llm['cached'] / max(tokens_in, 1):.0%} of the input cached",
        ", ".join(sorted(llm["models"])),
    ]
    if llm["money"] is not None:
        parts.insert(0, f"money {llm['money']:,.4f}")
    lines = [f"  LLM calls   {' · '.join(parts)}"]
    if replies := report.get("replies"):
        told = " · ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in sorted(replies.items()))
        lines.append(f"  replies     {told}")
    return lines


def retry_lines(run_id: str, report: dict[str, Any]) -> list[str]:
    """What can be done about messages that a model failed at."""
    failed = report.get("messages", {}).get("quarantined", {})
    if not any(reason.startswith(FAILURES) for reason in failed):
        return []
    where = f"why, with the replies, is in {report['notes']}; " if report.get("notes") else ""
    return [f"  {where}`lightmem retry {run_id}` extracts them again"]


def plan_json(plan: Plan) -> dict[str, Any]:
    return {name: _value(value) for name, value in asdict(plan).items()}


def _value(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: round(number, 6) for name, number in value._asdict().items()}
    return value


def plan_text(plan: Plan) -> str:
    how = "all of them" if plan.sampled == plan.users else f"of {plan.users:,}"
    lines = [
        f"plan of {plan.messages:,} messages of {plan.users:,} users in {plan.files:,} files, "
        f"by {plan.sampled:,} users ({how})",
        f"  new         {_range(plan.new_messages)} messages of {_range(plan.tokens)} tokens",
        f"  LLM calls   {_range(plan.calls)}",
        f"  tokens in   {_range(plan.prompt_tokens)}",
        f"  tokens out  {_range(plan.completion_tokens)}",
        f"  time        {_durations(plan.hours)}, with {plan.in_flight:,} requests in flight",
    ]
    if plan.money is not None:
        lines.append(f"  money       {_range(plan.money, '.2f')}")
    per_call = plan.measured
    lines.append(
        f"  a call: {per_call.completion_tokens:,.0f} tokens out in {per_call.seconds:.1f} s, "
        + (f"measured over {per_call.calls:,} calls" if per_call.calls else "as configured")
    )
    if plan.bad_rows:
        lines.append(f"  {plan.bad_rows:,} rows cannot be read")
    if plan.asleep:
        lines.append(
            "  the sleep asks too, once for each entry that resembles a later one: how many there "
            "will be is not known before they are written"
        )
    return "\n".join([*lines, "  replies that are asked for again come on top"])


def _range(value: Estimate, form: str = ".0f") -> str:
    told = format(value.expected, f",{form}")
    low, high = (format(end, f",{form}") for end in (value.low, value.high))
    return told if low == high else f"{told} ({low} to {high})"


def _durations(hours: Estimate) -> str:
    told, low, high = (duration(value * 3600) for value in hours)
    return told if low == high else f"{told} ({low} to {high})"
