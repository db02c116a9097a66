"""Filters as mem0 writes them: each says of an entry what a plain reading of it says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.online.filters import MOST_LEVELS, MOST_PARTS, parse, user_of
from lightmem_core.types import Entry

Made = Callable[..., Entry]
MAY_8 = 1_683_504_000_000  # 2023-05-08T00:00:00Z
HOUR = 3_600_000
NOTES = {
    "place": "Lisbon",
    "rank": 3,
    "tags": ["Trip", "sea"],
    "sure": True,
    "from": {"app": "mail"},
    "a.b": 1,
    "none": None,
}


@pytest.fixture
def known(entry: Made) -> Entry:
    return entry(
        "tickets to Lisbon are cheap",
        MAY_8 + HOUR,
        session="s1",
        topic="travel",
        agent_id="guide",
        stored_at=MAY_8 + 2 * HOUR,
        changed_at=MAY_8 + 30 * HOUR,
        metadata=json.dumps(NOTES),
    )


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({}, True),
        ({"user_id": "ada"}, True),
        ({"user_id": "bob"}, False),
        ({"user_id": {"in": ["bob", "ada"]}}, True),
        ({"run_id": "s1", "agent_id": "guide"}, True),
        ({"run_id": "s1", "agent_id": "cook"}, False),
        ({"session_id": ["s0", "s1"]}, True),
        ({"topic": "*"}, True),
        ({"event_at": "*"}, False),
        ({"event_at": {"ne": "*"}}, True),
        ({"event_at": None}, True),
        ({"topic": {"ne": "*"}}, False),
        ({"topic": {"icontains": "TRAV"}}, True),
        ({"topic": {"contains": "TRAV"}}, False),
        ({"speaker": {"nin": ["Bob"]}}, True),
        ({"said_at": "2023-05-08"}, True),
        ({"said_at": "2023-05-08T00:00:00Z"}, False),
        ({"said_at": {"gte": "2023-05-08", "lte": "2023-05-08"}}, True),
        ({"said_at": {"gt": "2023-05-08"}}, False),
        ({"said_at": {"lt": "2023-05-08"}}, False),
        ({"said_at": {"gt": "2023-05-08T00:59:59Z", "lt": "2023-05-08T01:00:01Z"}}, True),
        ({"said_at": {"lte": MAY_8 + HOUR}}, True),
        ({"created_at": {"gt": "2023-05-08"}}, False),
        ({"updated_at": {"gt": "2023-05-08"}}, True),
        ({"said_at": {"in": ["2022-01-01", "2023-05-08"]}}, True),
        ({"place": "Lisbon"}, True),
        ({"metadata.place": "Lisbon"}, True),
        ({"metadata": {"place": "Lisbon", "rank": {"gte": 3}}}, True),
        ({"metadata": {"place": "Lisbon", "rank": {"gt": 3}}}, False),
        ({"metadata.from.app": "mail"}, True),
        ({"a.b": 1}, True),
        ({"rank": {"lt": 3.5}}, True),
        ({"rank": {"lt": "4"}}, False),
        ({"rank": "3"}, False),
        ({"sure": True}, True),
        ({"sure": 1}, False),
        ({"rank": {"in": [True, 3]}}, True),
        ({"tags": "sea"}, True),
        ({"tags": {"in": ["sea", "hills"]}}, True),
        ({"tags": {"contains": "Trip"}}, True),
        ({"tags": {"contains": "Tri"}}, False),
        ({"tags": {"icontains": "trip"}}, True),
        ({"tags": {"nin": ["sea"]}}, False),
        ({"place": {"contains": "isb"}}, True),
        ({"missing": {"ne": 1}}, True),
        ({"missing": {"gt": 0}}, False),
        ({"none": None}, True),
        ({"none": "*"}, False),
        ({"AND": [{"place": "Lisbon"}, {"rank": 4}]}, False),
        ({"OR": [{"place": "Porto"}, {"rank": 3}]}, True),
        ({"NOT": {"place": "Porto"}}, True),
        ({"NOT": [{"place": "Porto"}, {"rank": 3}]}, False),
        ({"place": "Lisbon", "NOT": [{"OR": [{"rank": 1}, {"topic": "food"}]}]}, True),
        ({"AND": [{"OR": [{"rank": 1}, {"NOT": [{"topic": "food"}]}]}, {"user_id": "*"}]}, True),
    ],
)
def test_what_a_filter_says_of_an_entry(known: Entry, raw: dict[str, Any], found: bool):
    assert parse(raw).matches(known) is found
    assert parse({"NOT": [raw]}).matches(known) is not found


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ([], "must be an object"),
        ("user_id = 'ada'", "must be an object"),
        ({"OR": []}, "OR needs a list"),
        ({"AND": {"a": 1}}, "AND needs a list"),
        ({"OR": "1=1"}, "OR needs a list"),
        ({"OR": [1]}, "must be an object"),
        ({"a": {}}, "'a' has no operator"),
        ({"a": {"regex": ".*"}}, "no operator 'regex': use eq, ne"),
        ({"a": {"in": "ada"}}, "in needs a list"),
        ({"a": {"eq": [1]}}, "neither text nor number"),
        ({"a": {"eq": {"b": 1}}}, "neither text nor number"),
        ({"a": {"gt": None}}, "gt needs a number"),
        ({"a": {"contains": 1}}, "contains needs a text"),
        ({"a": {"in": [1] * 1001}}, "more than 1000 values"),
        ({"a": "x" * 5000}, "more than 4000 characters"),
        ({"": 1}, "not empty"),
        ({"user_id": {"contains": "a"}}, "user_id can be asked for by eq, ne, in, nin"),
        ({"user_id": {"gte": "a"}}, "user_id can be asked for by"),
        ({"user_id": 7}, "user_id is a text"),
        ({"created_at": {"gte": "yesterday"}}, "created_at: "),
        ({"said_at": True}, "said_at: a bool is not a time"),
        ({str(n): n for n in range(MOST_PARTS + 1)}, "more than 200 parts"),
    ],
)
def test_a_wrong_filter_is_refused_in_one_line(raw: object, problem: str):
    with pytest.raises(ValueError, match=problem) as caught:
        parse(raw)
    assert "\n" not in str(caught.value)


def test_a_filter_is_nested_so_deep_at_most():
    raw: dict[str, Any] = {"topic": "travel"}
    for _ in range(MOST_LEVELS - 1):
        raw = {"NOT": [raw]}
    parse(raw)
    for _ in range(5_000):
        raw = {"AND": [raw]}
    with pytest.raises(ValueError, match="deeper than 8 levels"):
        parse(raw)


@pytest.mark.parametrize(
    ("raw", "user"),
    [
        ({"user_id": "ada"}, "@acme/ada"),
        ({"AND": [{"user_id": "ada"}, {"topic": "x"}]}, "@acme/ada"),
        ({"OR": [{"user_id": "ada"}]}, "@acme/ada"),
        ({"OR": [{"user_id": "ada"}, {"user_id": "bob"}]}, None),
        ({"NOT": [{"user_id": "ada"}]}, None),
        ({"user_id": {"in": ["ada"]}}, None),
        ({"user_id": "*"}, None),
        ({"AND": [{"user_id": "ada"}, {"user_id": "bob"}]}, None),
        ({"topic": "ada"}, None),
    ],
)
def test_the_user_that_a_filter_asks_for(raw: dict[str, Any], user: str | None):
    assert user_of(parse(raw, lambda name: f"@acme/{name}")) == user


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(["AND", "OR", "NOT", "user_id", "said_at", "topic", "metadata", "rank"])
OPERATORS = st.sampled_from(["eq", "ne", "in", "nin", "gt", "lte", "contains", "icontains", "x"])
FILTERS = st.dictionaries(KEYS, JSON | st.dictionaries(OPERATORS, JSON, max_size=2), max_size=4)


@settings(max_examples=200, deadline=None)
@given(raw=FILTERS, metadata=JSON)
def test_any_json_is_read_or_refused_and_judges_any_entry(raw: Any, metadata: Any, entry: Made):
    try:
        wanted = parse(raw)
    except ValueError:
        return
    assert wanted.matches(entry("x", metadata=json.dumps(metadata))) in (True, False)
