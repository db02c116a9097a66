from dataclasses import fields, is_dataclass, replace

import numpy as np
import pyarrow as pa
import pytest

from lightmem_core import types
from lightmem_core.formats import Rejected
from lightmem_core.schema import from_table, schema_of, to_table, vectors_of
from lightmem_core.types import (
    Buffer,
    Decision,
    Entry,
    Extracted,
    Fact,
    Failure,
    History,
    Message,
    Segment,
    SegmentedHistory,
    Source,
    UserEntries,
)

SAID = Message(
    "ada", "s1", 3, "user", "Ünïcödé 😀 用户\n\x00", 1_683_554_160_000, "Ada", "coach", '{"a": 1}',
    "f:7", "m1", "Ünïcödé", 4, 2, "g1", "quarantined", "why",
)  # fmt: skip
PLAIN = Message("", "", -1, "", "", -5)
VECTOR = np.array([0.6, 0.8], np.float32)
PLACES = (Source("s1", 3), Source("s2", 0))
FULL = Entry(
    "e1", "ada", "s1", 3, 1, "Ada", "It rains.", "rain", 5, 7, PLACES, "coach", '{"a": 1}', "llm",
    "run-1", 9, PLACES[:1], "e2", "run-2", 11, 4, VECTOR,
)  # fmt: skip
BARE = Entry("e2", "ada", "s1", 0, 0, "Ada", "", "", 0, None, ())
SEGMENTS = (Segment((SAID, PLAIN)), Segment((PLAIN,)), Segment(()))
ROWS = [
    SAID, PLAIN, History("ada", (SAID, PLAIN), 2), History("", ()), *SEGMENTS,
    SegmentedHistory("ada", SEGMENTS, 3), SegmentedHistory("ada", ()),
    Buffer("ada", SEGMENTS, 1), Buffer("ada", ()), Source("s1", 2**62),
    Fact("x", (0, 2), "t", 5, "llm"), Fact("x", ()), Failure("why", (0, 2)),
    FULL, BARE, Extracted("ada", (SAID,), (FULL, BARE), 1), Extracted("ada", (), ()),
    UserEntries("ada", (FULL, BARE)), UserEntries("ada", ()),
    Decision("ada", "e1", "merge", "e2", 0.123456789, "same words"),
    Decision("ada", "e1", "update", "e2", 1.0, "an LLM", "It pours.", 3, 4),
    Rejected("f:1", "bad_json", "detail", "raw"),
]  # fmt: skip


def plain(row: object) -> object:
    """A row as nested tuples that can be compared, arrays with their type."""
    if isinstance(row, np.ndarray):
        return ("array", str(row.dtype), row.tolist())
    if isinstance(row, tuple):
        return tuple(map(plain, row))
    if not is_dataclass(row):
        return row
    return (type(row).__name__, *(plain(getattr(row, f.name)) for f in fields(row)))


def test_every_row_type_has_an_example_here():
    declared = {c for c in vars(types).values() if isinstance(c, type) and is_dataclass(c)}
    assert declared <= {type(row) for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_survives_the_way_to_arrow_and_back(row: object):
    (found,) = from_table(to_table([row], type(row)), type(row))
    assert plain(found) == plain(row)


@pytest.mark.parametrize("cls", sorted({type(r) for r in ROWS}, key=lambda c: c.__name__))
def test_rows_keep_their_order_and_none_is_no_error(cls: type):
    rows = [row for row in ROWS if type(row) is cls] * 3
    assert list(map(plain, from_table(to_table(rows, cls), cls))) == list(map(plain, rows))
    empty = to_table([], cls)
    assert empty.schema == schema_of(cls)
    assert from_table(empty, cls) == []


def test_vectors_survive_slices_and_chunks():
    rows = [replace(FULL, vector=np.full(2, n, np.float32)) for n in range(6)]
    parts = [to_table(rows[:4], Entry).slice(1), to_table(rows[4:], Entry).slice(1)]
    found = from_table(pa.concat_tables(parts), Entry)
    expected = [1, 2, 3, 5]
    assert [e.vector[0] for e in found if e.vector is not None] == expected
    stacked = vectors_of(pa.concat_tables(parts)["vector"])
    assert (stacked.shape, stacked[:, 1].tolist()) == ((4, 2), expected)


def test_a_vector_may_be_missing_among_others():
    found = from_table(to_table([FULL, BARE, FULL], Entry), Entry)
    assert [e.vector is None for e in found] == [False, True, False]


def test_missing_columns_take_their_defaults_and_others_are_ignored():
    table = to_table([SAID], Message)
    fewer = table.select(["user_id", "session_id", "position", "role", "content", "said_at"])
    (found,) = from_table(fewer.append_column("_distance", pa.array([0.5])), Message)
    assert found == Message("ada", "s1", 3, "user", SAID.content, SAID.said_at)


def test_a_value_of_the_wrong_type_is_not_stored():
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        to_table([replace(SAID, said_at="yesterday")], Message)  # pyright: ignore[reportArgumentType]
