"""What calls of a language model have used, what that costs, and when it is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightmem_core.config import MemoryConfig, Prices
from lightmem_core.errors import ConfigError

SUMMARY, UPDATE = "summary", "update"  # the stages that ask, as they are named with their replies
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


def price(prices: Prices, tokens_in: float, tokens_out: float, cached: float = 0) -> float:
    """`cached` tokens are among those that go in."""
    of_cached = prices.prompt if prices.cached is None else prices.cached
    cost = (tokens_in - cached) * prices.prompt + cached * of_cached
    return (cost + tokens_out * prices.completion) / MILLION


def prices_of(memory: MemoryConfig) -> Prices | None:
    """None where none are configured."""
    found = memory.llm.prices if memory.llm is not None else Prices()
    return found if found.prompt or found.completion else None


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a run may pay for, over all its attempts: `tokens` in and out, and `money` at
    the `prices`. None: no cap."""

    tokens: int | None = None
    money: float | None = None
    prices: Prices | None = None

    @classmethod
    def asked(cls, tokens: int | None, money: float | None, prices: Prices | None) -> Budget:
        """Raise ConfigError for a cap on money without prices."""
        if money is not None and prices is None:
            raise ConfigError(
                "--budget-money needs prices per million tokens in the configuration: "
                "memory.llm.prices, such as {prompt: 0.4, cached: 0.1, completion: 1.6}"
            )
        return cls(tokens, money, prices)

    @property
    def capped(self) -> bool:
        return self.tokens is not None or self.money is not None

    def spent(self, usage: Usage) -> str:
        """What is spent and how to go on, in one line; empty while there is something left."""
        if self.tokens is not None and usage.total >= self.tokens:
            what, cap = f"{usage.total:,} tokens", f"--budget-tokens {self.tokens}"
        elif self.money is not None and self.prices and usage.money(self.prices) >= self.money:
            what, cap = f"{usage.money(self.prices):,.4f}", f"--budget-money {self.money:g}"
        else:
            return ""
        return (
            f"the run has paid for {what} in {usage.calls:,} calls, all that {cap} allows: repeat "
            "the command with a higher one; what is paid for is not asked again"
        )
