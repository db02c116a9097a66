"""Times as a person types them on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from lightmem_core.formats.timestamps import parse_time

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Time:
    """UTC milliseconds; `whole_day` if only a day was named."""

    at: int
    whole_day: bool


class TimeType(click.ParamType):
    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> Time:
        if isinstance(value, Time):
            return value
        try:
            return Time(parse_time(value), whole_day=len(str(value).strip()) == len("2025-06-30"))
        except ValueError as error:
            self.fail(f"{value!r} is no time ({error}); write it as 2025-06-30 or 2025-06-30T18:00")


TIME = TimeType()


def last_moment(until: Time) -> int:
    return until.at + DAY_MS - 1 if until.whole_day else until.at
