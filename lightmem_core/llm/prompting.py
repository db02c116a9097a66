"""The fixed part of what a language model is asked: one text, the same in every call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import regex

from lightmem_core.errors import ConfigError
from lightmem_core.types import stable_id

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
CHARS = 500  # at most, of a text that a model writes: enough for two long sentences
SIZES = 8  # a server makes a grammar for each schema: counts are rounded up to multiples of this
# What no text may hold: a schema with a length lets raw control characters pass.
UNWRITABLE = regex.compile(r"[\p{Cc}\p{Cs}]+")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`name` ends in eight digits of the text's hash, so that it names this text alone."""

    name: str
    text: str

    @classmethod
    def of(cls, name: str, given: str | Mapping[str, str] | None = None) -> Prompt:
        """The packaged prompt of that name; or the one at a path, or with a `name` and a `text`.
        Servers keep what they read of a prompt, so it must not differ between calls: what does goes
        into the next message."""
        if isinstance(given, Mapping):
            return cls._of_text(given["name"], given["text"])
        source = Path(given) if given else files("lightmem_core.llm") / "prompts" / f"{name}.md"
        try:
            text = source.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the prompt {source}: {error}") from error
        if not text:
            raise ConfigError(f"the prompt {source} is empty")
        return cls._of_text(Path(given).stem if given else name, text)

    @classmethod
    def _of_text(cls, name: str, text: str) -> Prompt:
        return cls(f"{name.partition('@')[0]}@{stable_id('prompt', text)[:8]}", text)

    def messages(self, data: str) -> tuple[dict[str, str], ...]:
        return ({"role": "system", "content": self.text}, {"role": "user", "content": data})


def rounded(count: int) -> int:
    """A count for the schema of a request, of which there are few. What is read is held to the true
    one."""
    return -(-count // SIZES) * SIZES


def one_line(text: str) -> str:
    """The text without line breaks, so that none of its lines can pass for another row."""
    return " ".join(UNWRITABLE.sub(" ", text).split())


def day(at: int) -> str:
    """ "Mon 2023-05-08", in UTC."""
    date = datetime.fromtimestamp(at / 1000, UTC)
    return f"{WEEKDAYS[date.weekday()]} {date:%Y-%m-%d}"
