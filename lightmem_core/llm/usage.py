"""What calls of a language model have used, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightmem_core.config import Prices

EXTRACT, UPDATE = "extract", "update"  # the stages that ask, as they are named with their replies
MILLION = 1_000_000


@dataclass
class Usage:
    """LLM use in the columns of the paper's tables. `cached` tokens are among those that went in;
    `call_seconds` adds up the calls, many of which run at once."""

    summary_in: int = 0
    summary_out: int = 0
    update_in: int = 0
    update_out: int = 0
    calls: int = 0
    cached: int = 0
    call_seconds: float = 0.0
    models: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.tokens_in + self.tokens_out

    @property
    def tokens_in(self) -> int:
        return self.summary_in + self.update_in

    @property
    def tokens_out(self) -> int:
        return self.summary_out + self.update_out

    @classmethod
    def of(cls, calls: Iterable[Mapping[str, Any]]) -> Usage:
        """The sum of what was saved of each call."""
        usage = cls()
        for call in calls:
            usage.add(call)
        return usage

    def add(self, call: Mapping[str, Any]) -> None:
        if call["stage"] == UPDATE:
            self.update_in += call["prompt_tokens"]
            self.update_out += call["completion_tokens"]
        else:
            self.summary_in += call["prompt_tokens"]
            self.summary_out += call["completion_tokens"]
        self.calls += 1
        self.cached += call["cached_tokens"]
        self.call_seconds += call["seconds"]
        self.models[call["model"]] = self.models.get(call["model"], 0) + 1

    def money(self, prices: Prices) -> float:
        return price(prices, self.tokens_in, self.tokens_out, self.cached)

    def as_dict(self, prices: Prices | None = None) -> dict[str, Any]:
        """With the money that it cost, None where no prices are known."""
        money = round(self.money(prices), 6) if prices else None
        rounded = {"call_seconds": round(self.call_seconds, 3)}
        return asdict(self) | rounded | {"total": self.total, "money": money}


def counted(notes: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """What became of replies, by the notes of them: those that were `bad`, what was `rejected_*` in
    any of them, requests that `failed` or were good `in_part`, and those that were `split`."""
    counts: Counter[str] = Counter()
    for note in notes:
        if note["kind"] != "reply":
            counts[note["kind"]] += 1
            continue
        counts["bad"] += bool(note["problems"])
        counts.update({f"rejected_{kind}": n for kind, n in note["rejected"].items()})
    return +counts


def price(prices: Prices, tokens_in: float, tokens_out: float, cached: float = 0) -> float:
    """`cached` tokens are among those that go in."""
    of_cached = prices.prompt if prices.cached is None else prices.cached
    cost = (tokens_in - cached) * prices.prompt + cached * of_cached
    return (cost + tokens_out * prices.completion) / MILLION
