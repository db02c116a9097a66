from datetime import UTC, datetime

import pytest

from lightmem_core.short_term.dates import resolve

MONDAY = int(datetime(2023, 5, 8, 13, 56, tzinfo=UTC).timestamp() * 1000)


def resolved(text: str, language: str = "en") -> str | None:
    at = resolve(text, MONDAY, language)
    return None if at is None else datetime.fromtimestamp(at / 1000, UTC).isoformat()[:16]


@pytest.mark.parametrize(
    ("language", "text", "day"),
    [
        ("en", "I went to a support group yesterday.", "2023-05-07"),
        ("en", "Two weeks ago we moved", "2023-04-24"),
        ("en", "It happened a couple of days ago", "2023-05-06"),
        ("en", "last weekend was fun", "2023-05-06"),
        ("en", "we met on Friday", "2023-05-05"),
        ("en", "We'll meet on Friday", "2023-05-12"),
        ("en", "on the 7th of May 2021", "2021-05-07"),
        ("en", "we married in July", "2022-07-01"),
        ("en", "due 2023-04-01, at last", "2023-04-01"),
        ("de", "Letzten Freitag war ich dort", "2023-05-05"),
        ("de", "vor zwei Wochen", "2023-04-24"),
        ("de", "am 3. Mai 2021", "2021-05-03"),
        ("es", "hace dos días", "2023-05-06"),
        ("es", "la semana pasada", "2023-05-01"),
        ("en", "I may go on Monday", "2023-05-15"),
        ("en", "My sister might not come on Friday", "2023-05-12"),
        ("en", "She wants to leave on Friday", "2023-05-12"),
        ("en", "I may have seen her on Friday", "2023-05-05"),
        ("en", "In May we met on Friday", "2023-05-01"),
        ("de", "Ich muss am Freitag hin", "2023-05-12"),
        ("fr", "il y a trois jours", "2023-05-05"),
        ("fr", "Aujourd’hui il pleut", "2023-05-08"),
    ],
)
def test_a_named_day_is_midnight_of_that_day(language: str, text: str, day: str):
    assert resolved(text, language) == f"{day}T00:00"


@pytest.mark.parametrize(
    ("language", "text", "day"),
    [
        ("en", "last year", "2022-05-08"),
        ("en", "two months ago", "2023-03-08"),
        ("de", "vor einem Jahr", "2022-05-08"),
        ("es", "el mes pasado", "2023-04-08"),
        ("fr", "il y a deux ans", "2021-05-08"),
    ],
)
def test_months_and_years_are_counted_from_the_day(language: str, text: str, day: str):
    assert resolved(text, language) == f"{day}T00:00"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "it may rain, this may be it"),
        ("en", "we march in the sun"),
        ("en", "12 may be enough, or 50 may come"),
        ("en", ""),
        ("de", "Guten Morgen!"),
        ("es", "por la mañana"),
        ("nl", "gisteren"),
    ],
)
def test_a_word_that_only_looks_like_a_date_is_none(language: str, text: str):
    assert resolved(text, language) is None


def test_the_first_day_named_counts():
    assert resolved("yesterday, not last Friday") == "2023-05-07T00:00"


def test_times_before_1970_are_resolved():
    assert resolve("yesterday", -1, "en") == -2 * 86_400_000
