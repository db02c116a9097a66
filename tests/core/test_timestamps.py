from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightmem_core.formats.timestamps import parse_time

LAW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
AT = 1_683_554_160_000  # 2023-05-08 13:56 UTC
DAY = 1_683_504_000_000


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2023-05-08T13:56:00Z", AT),
        ("2023-05-08 13:56:00", AT),
        ("2023-05-08T13:56", AT),
        ("2023-05-08T15:56:00+02:00", AT),
        ("2023-05-08 15:56:00+02", AT),
        ("2023-05-08 15:56:00 +0200", AT),
        ("2023-05-08 13:56:00 UTC", AT),
        ("2023-05-08t13:56:00z", AT),
        (" 2023-05-08T13:56:00Z ", AT),
        ("2023-05-08T13:56:00.250Z", AT + 250),
        ("2023-05-08T13:56:00.123456789Z", AT + 123),
        ("2023-05-08", DAY),
        ("20230508", DAY),
        ("20230508T135600Z", AT),
        ("1:56 pm on 8 May, 2023", AT),
        ("1:56 PM on 8 May 2023", AT),
        ("12:05 am on 8 May, 2023", DAY + 5 * 60_000),
        ("12:05 pm on 8 May, 2023", DAY + 725 * 60_000),
        ("9:00 am on 13 September, 2023", 1_694_595_600_000),
        ("2023/05/08 (Mon) 13:56", AT),
        ("2023/05/08 13:56:30", AT + 30_000),
        ("2023/5/8", DAY),
        (AT // 1000, AT),
        (AT, AT),
        (AT / 1000 + 0.25, AT + 250),
        (str(AT // 1000), AT),
        (str(AT), AT),
        ("1683554160.25", AT + 250),
        (Decimal("1683554160.25"), AT + 250),
        (datetime(2023, 5, 8, 13, 56), AT),
        (datetime(2023, 5, 8, 15, 56, tzinfo=timezone(timedelta(hours=2))), AT),
        (date(2023, 5, 8), DAY),
    ],
)
def test_every_accepted_way_to_write_a_time(written, expected):
    assert parse_time(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        None, True, False, float("nan"), float("inf"), Decimal("NaN"), -1, 10**11 - 1, 10**20,
        0, 5, 2023, 20230508, 20230508.0, "000000000",
        10**400, [], {}, b"2023-05-08", "", "   ", "yesterday", "2023", "12345", "2023-13-01",
        "2023-02-30", "2023-05-08T25:00", "1969-12-31", "2201-01-01", "0001-01-01T00:00+14:00",
        "9999-12-31", "13:56 pm on 8 May, 2023", "0:10 am on 8 May, 2023",
        "1:56 pm on 31 June, 2023", "1:56 pm on 8 Mai, 2023", "2023/02/30 (Thu) 10:00", "99999999",
        "1683554160000000", "2023-05-08T13:56:00Z and more", "1:56 pm",
        "\u0662\u0660\u0662\u0663-05-08",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_with_a_reason(written):
    with pytest.raises(ValueError, match=r"\w"):
        parse_time(written)


@pytest.mark.parametrize(
    "written",
    [
        "2023-05-08T13:56",
        "1:56 pm on 8 May, 2023",
        "2023/05/08 (Mon) 13:56",
        datetime(2023, 5, 8, 13, 56),
    ],
)
def test_naive_times_are_read_in_the_given_zone(written):
    assert parse_time(written, ZoneInfo("Europe/Berlin")) == AT - 2 * 3_600_000
    assert parse_time(written, UTC) == AT


def test_a_time_with_an_offset_ignores_the_given_zone():
    assert parse_time("2023-05-08T13:56Z", ZoneInfo("Asia/Tokyo")) == AT


@LAW
@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 12, 30), timezones=st.timezones()))
def test_iso_and_datetime_agree_to_the_millisecond(time):
    expected = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert parse_time(time) == expected
    if time.utcoffset() % timedelta(minutes=1) == timedelta():
        assert parse_time(time.isoformat()) == expected


@LAW
@given(st.one_of(st.text(), st.floats(), st.integers(), st.from_regex(r"[\d:/TZ apm-]+")))
def test_nothing_but_a_value_error_is_raised(written):
    with suppress(ValueError):
        assert 0 <= parse_time(written) < 7_289_654_400_000
