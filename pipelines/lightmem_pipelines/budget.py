"""When enough is paid for."""

from __future__ import annotations

from dataclasses import dataclass

from lightmem_core.config import MemoryConfig, Prices
from lightmem_core.errors import ConfigError
from lightmem_core.llm.usage import Usage


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
