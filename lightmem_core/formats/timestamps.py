"""When something was said: every accepted way to write a time, as UTC milliseconds."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST = 0
LAST = (datetime(2201, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1) - 1
SECONDS_FROM = 1e8  # March 1973; smaller numbers are dates ("20230508"), years or counters
MILLISECONDS_FROM = 1e11  # as seconds the year 5138, as milliseconds March 1973

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DIGITS = re.compile(r"\d{9,16}(\.\d*)?", re.ASCII)
# 1:56 pm on 8 May, 2023
SPOKEN = re.compile(
    r"(\d{1,2}):(\d\d)\s*([ap])\.?m\.?\s+on\s+(\d{1,2})\s+([a-z]{3})[a-z]*\.?,?\s+(\d{4})",
    re.ASCII | re.IGNORECASE,
)
# 2023/05/30 (Tue) 23:40
SLASHED = re.compile(
    r"(\d{4})/(\d{1,2})/(\d{1,2})(?:\s+\([a-z]+\))?(?:[\sT]+(\d{1,2}):(\d\d)(?::(\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)
# an ISO time with its offset, or UTC, set apart or in lower case
LOOSE_ISO = re.compile(r"(\d{4}-.*\d)\s*(z|utc|gmt|[+-]\d\d:?(?:\d\d)?)", re.ASCII | re.IGNORECASE)


def parse_time(value: object, timezone: tzinfo = UTC) -> int:
    """UTC milliseconds of a time written in any accepted way; a naive one is read in `timezone`.

    Accepts ISO 8601, epoch seconds or milliseconds, dates and datetimes, and the styles of LoCoMo
    and LongMemEval. Raise ValueError if it cannot be read or lies outside the years 1970 to 2200;
    a number must lie in March 1973 or later, for smaller ones are mistaken for times too easily.
    """
    if isinstance(value, str):
        return parse_text(value, timezone)
    if isinstance(value, datetime):
        return milliseconds(value, timezone)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return from_epoch(float(value) if isinstance(value, Decimal) else value)
    if isinstance(value, date):
        return milliseconds(datetime(value.year, value.month, value.day), timezone)
    raise ValueError(f"a {type(value).__name__} is not a time")


def parse_text(text: str, timezone: tzinfo) -> int:
    if text[4:5] == "-":
        try:
            return milliseconds(datetime.fromisoformat(text), timezone)
        except ValueError:
            pass  # the slow way knows more styles, and why it is none of them
    return parse_styles(text.strip()[:100], timezone)


@lru_cache(maxsize=4096)  # the messages of a session share the time of the session
def parse_styles(text: str, timezone: tzinfo) -> int:
    if DIGITS.fullmatch(text):
        return from_epoch(float(text))
    if match := SPOKEN.fullmatch(text):
        return milliseconds(spoken(*match.groups()), timezone)
    if match := SLASHED.fullmatch(text):
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
        return milliseconds(datetime(year, month, day, hour, minute, second), timezone)
    if match := LOOSE_ISO.fullmatch(text):
        zone = match[2] if match[2][0] in "+-" else "Z"
        text = match[1].upper() + zone
    if text.isdecimal() and len(text) != 8:
        raise ValueError(f"{text!r} is neither a date nor an epoch time")
    return milliseconds(datetime.fromisoformat(text), timezone)


def spoken(hour: str, minute: str, half: str, day: str, month: str, year: str) -> datetime:
    if not 1 <= int(hour) <= 12:
        raise ValueError(f"there is no {hour}:{minute} {half}m")
    if month.lower() not in MONTHS:
        raise ValueError(f"{month!r} is no month")
    afternoon = 12 if half in "pP" else 0
    number = MONTHS.index(month.lower()) + 1
    return datetime(int(year), number, int(day), int(hour) % 12 + afternoon, int(minute))


def from_epoch(value: float) -> int:
    """Seconds or milliseconds, told apart by their size."""
    if not SECONDS_FROM <= value < 1e16:  # false for NaN too
        raise ValueError(f"{value} is no epoch time: too small, too large, or no number")
    return in_range(round(value if value >= MILLISECONDS_FROM else value * 1000))


def milliseconds(time: datetime, timezone: tzinfo) -> int:
    if not 1969 <= time.year <= 2201:
        raise ValueError(f"the year {time.year} is outside 1970 to 2200")
    if time.tzinfo is None:
        time = time.replace(tzinfo=timezone)
    since = time - EPOCH
    return in_range(since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000)


def in_range(at: int) -> int:
    if not FIRST <= at <= LAST:
        raise ValueError(f"{at} ms since the epoch is outside the years 1970 to 2200")
    return at
