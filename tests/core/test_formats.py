import gzip
import io
import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightmem_core.errors import InputError
from lightmem_core.formats import FORMATS, Rejected, detect_file, parse_file, read
from lightmem_core.types import Message

AT = 1_683_554_160_000
ROW = {
    "user_id": "ada",
    "session_id": "s1",
    "role": "user",
    "content": "I moved to Lisbon.",
    "timestamp": "2023-05-08T13:56:00Z",
}
CHAT = {
    "user_id": "ada",
    "session_id": "s1",
    "timestamp": "2023-05-08T13:56:00Z",
    "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "timestamp": AT + 5_000, "name": "Bot"},
    ],
}
LOCOMO = {
    "sample_id": "conv-1",
    "qa": [],
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bob",
        "session_2_date_time": "2:56 pm on 8 May, 2023",
        "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "Back again."}],
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "Look!", "blip_caption": "a red kite"},
            {"speaker": "Bob", "dia_id": "D1:2", "text": "", "blip_caption": "two kites"},
            {"speaker": "Ann", "dia_id": "D1:3", "text": "", "img_url": ["http://x/y.jpg"]},
        ],
        "session_3_date_time": "3:56 pm on 8 May, 2023",
    },
}
LONGMEMEVAL = {
    "question_id": "q1",
    "question": "Where does she live?",
    "haystack_dates": ["2023/05/09 (Tue) 10:00", "2023/05/08 (Mon) 13:56"],
    "haystack_session_ids": ["late", "early"],
    "haystack_sessions": [
        [{"role": "user", "content": "Later", "has_answer": True}],
        [{"role": "user", "content": "Early"}, {"role": "assistant", "content": "Noted"}],
    ],
}
RECORDS = {"messages": ROW, "chats": CHAT, "locomo": LOCOMO, "longmemeval": LONGMEMEVAL}
MESSAGES_IN = {"messages": 1, "chats": 2, "locomo": 4, "longmemeval": 3}


def parse(record, format="messages"):
    return list(FORMATS[format](record, "file:1", UTC))


def parse_bytes(data, path="file.jsonl", format=None):
    return list(parse_file(io.BytesIO(data), path, format))


def lines(*records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def reasons(rows):
    return [row.reason if isinstance(row, Rejected) else "ok" for row in rows]


# --- one message --------------------------------------------------------------------------------


def test_a_message_row_keeps_what_it_says():
    extra = {"position": 3, "name": "Ada", "agent_id": "a1", "metadata": {"b": 1, "a": "é"}}
    assert parse({**ROW, **extra}) == [
        Message(
            user_id="ada",
            session_id="s1",
            position=3,
            role="user",
            content="I moved to Lisbon.",
            said_at=AT,
            name="Ada",
            agent_id="a1",
            metadata='{"a": "é", "b": 1}',
            source="file:1",
        )
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": None}, "missing_user"),
        ({"user_id": "  "}, "missing_user"),
        ({"user_id": True}, "wrong_type"),
        ({"user_id": 1.5}, "wrong_type"),
        ({"user_id": ["ada"]}, "wrong_type"),
        ({"user_id": 10**5000}, "wrong_type"),
        ({"user_id": "a\0b"}, "wrong_type"),
        ({"user_id": "a\ud83d"}, "wrong_type"),
        ({"session_id": {}}, "wrong_type"),
        ({"session_id": " "}, "missing_session"),
        ({"role": None}, "missing_role"),
        ({"role": ""}, "missing_role"),
        ({"role": 1}, "wrong_type"),
        ({"content": None}, "empty_content"),
        ({"content": " \n"}, "empty_content"),
        ({"content": []}, "empty_content"),
        ({"content": 5}, "wrong_type"),
        ({"content": {"text": "x"}}, "wrong_type"),
        ({"content": [5]}, "wrong_type"),
        ({"content": [{"text": "x"}]}, "wrong_type"),
        ({"content": [{"type": "text"}]}, "wrong_type"),
        ({"timestamp": None}, "missing_time"),
        ({"timestamp": ""}, "missing_time"),
        ({"timestamp": "soon"}, "bad_time"),
        ({"timestamp": True}, "bad_time"),
        ({"timestamp": float("nan")}, "bad_time"),
        ({"timestamp": 20230508}, "bad_time"),
        ({"position": -1}, "wrong_type"),
        ({"position": "3"}, "wrong_type"),
        ({"position": 2**31}, "wrong_type"),
        ({"position": True}, "wrong_type"),
        ({"name": 3}, "wrong_type"),
        ({"agent_id": []}, "wrong_type"),
        ({"metadata": "text"}, "wrong_type"),
        ({"metadata": [1]}, "wrong_type"),
    ],
)
def test_each_fault_has_its_reason(change, reason):
    (row,) = parse({**ROW, **change})
    assert (row.reason, row.source) == (reason, "file:1")
    assert next(iter(change)).removesuffix("_id") in row.detail


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"user_id": 42}, "user_id", "42"),
        ({"session_id": 0}, "session_id", "0"),
        ({"session_id": None}, "session_id", "default"),
        ({"turn_index": 4}, "position", 4),
        ({"position": 0, "turn_index": 4}, "position", 0),
        ({"position": 3.0}, "position", 3),
        ({}, "position", -1),
        ({"content": [{"type": "text", "text": "See"}, "here"]}, "content", "See\nhere"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "content", "[image]"),
        ({"content": [{"type": "input_audio"}, {"type": "file"}]}, "content", "[audio]\n[file]"),
        ({"content": "half \ud83d and \0"}, "content", "half \ufffd and \ufffd"),
        ({"metadata": {}}, "metadata", ""),
        ({"metadata": {"x": float("nan")}}, "metadata", '{"x": null}'),
        ({"metadata": '{"b": 1, "a": 2}'}, "metadata", '{"a": 2, "b": 1}'),
        ({"metadata": [("b", "1"), ("a", "2")]}, "metadata", '{"a": "2", "b": "1"}'),
        ({"agent_id": 7}, "agent_id", "7"),
        ({"timestamp": datetime(2023, 5, 8, 13, 56)}, "said_at", AT),
    ],
)
def test_what_is_accepted_beside_the_plain_form(change, field, expected):
    (row,) = parse({**ROW, **change})
    assert getattr(row, field) == expected


def test_the_raw_row_of_a_rejection_is_kept_and_short():
    (row,) = parse({**ROW, "user_id": "", "content": "x" * 10_000})
    assert len(row.raw) == 2_000
    assert row.raw.startswith('{"user_id": ""')


def test_metadata_nested_too_deeply_is_refused():
    deep = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert reasons(parse({**ROW, "metadata": deep})) == ["wrong_type"]
    while deep:  # freeing it at once would recurse too
        deep = deep.pop("a")


# --- sessions -----------------------------------------------------------------------------------


def test_messages_of_a_chat_take_place_time_and_agent_from_it():
    first, second = parse({**CHAT, "agent_id": "a1"}, "chats")
    assert (first.position, first.said_at, first.agent_id) == (0, AT, "a1")
    assert (second.position, second.said_at, second.name) == (1, AT + 5_000, "Bot")


def test_a_bad_message_in_a_chat_is_rejected_alone():
    turns = [*CHAT["messages"], "text", {"role": "user"}, {"role": "user", "content": "Bye"}]
    rows = parse({**CHAT, "messages": turns}, "chats")
    assert reasons(rows) == ["ok", "ok", "wrong_type", "empty_content", "ok"]
    assert rows[-1].position == 4


def test_a_bad_time_in_a_chat_does_not_fall_back():
    turns = [{"role": "user", "content": "Hi", "timestamp": "soon"}]
    assert reasons(parse({**CHAT, "messages": turns}, "chats")) == ["bad_time"]


def test_a_chat_without_session_id_rejects_each_message():
    assert reasons(parse({**CHAT, "session_id": None}, "chats")) == ["missing_session"] * 2


def test_locomo_is_one_user_with_sessions_in_order_and_captions_kept():
    rows = parse(LOCOMO, "locomo")
    assert {row.user_id for row in rows} == {"conv-1"}
    assert [(row.session_id, row.position, row.role, row.name, row.content) for row in rows] == [
        ("session_1", 0, "user", "Ann", "Look! [image: a red kite]"),
        ("session_1", 1, "assistant", "Bob", "[image: two kites]"),
        ("session_1", 2, "user", "Ann", "[image]"),
        ("session_2", 0, "assistant", "Bob", "Back again."),
    ]
    assert (rows[0].said_at, rows[3].said_at) == (AT, AT + 3_600_000)
    assert rows[0].metadata == '{"dia_id": "D1:1"}'


def test_longmemeval_is_one_user_with_sessions_by_date():
    rows = parse(LONGMEMEVAL, "longmemeval")
    assert {row.user_id for row in rows} == {"q1"}
    assert [(row.session_id, row.position, row.content, row.metadata) for row in rows] == [
        ("early", 0, "Early", ""),
        ("early", 1, "Noted", ""),
        ("late", 0, "Later", '{"has_answer": true}'),
    ]


def test_a_session_id_twice_in_a_haystack_names_two_sessions():
    rows = parse({**LONGMEMEVAL, "haystack_session_ids": ["same", "same"]}, "longmemeval")
    assert [row.session_id for row in rows] == ["same", "same", "same#2"]


def test_haystack_sessions_without_id_or_date_reject_their_messages():
    short = {**LONGMEMEVAL, "haystack_dates": [], "haystack_session_ids": ["late"]}
    assert reasons(parse(short, "longmemeval")) == ["missing_time"] + ["missing_session"] * 2


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("record", [None, 5, "text", [], {}, {"messages": 1, "conversation": 2}])
def test_a_record_of_the_wrong_shape_is_one_rejection(record, format):
    (row,) = parse(record, format)
    assert isinstance(row, Rejected)


# --- laws ---------------------------------------------------------------------------------------

LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.text(st.sampled_from("aZ1 \n\0é中\ud83d😀"), max_size=8) | st.sampled_from(
    ["2023-05-08"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*ROW, "position", "turn_index", "name", "agent_id", "metadata"]
TURN_FIELDS = [*FIELDS, "speaker", "dia_id", "text", "blip_caption", "img_url", "has_answer"]


def turns_of(record, format):
    """The lists of messages in a record, to be changed in place."""
    if format == "chats":
        return [record["messages"]]
    if format == "locomo":
        return [v for k, v in record["conversation"].items() if k in ("session_1", "session_2")]
    return record["haystack_sessions"]


def assert_clean(rows):
    for row in rows:
        texts = [getattr(row, name) for name in row.__slots__]
        text = "".join(text for text in texts if isinstance(text, str))
        assert "\0" not in text
        text.encode()


@LAW
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_any_value_in_any_field_of_a_message_gives_one_clean_item(change):
    rows = parse({**ROW, **change})
    assert len(rows) == 1
    assert_clean(rows)


@pytest.mark.parametrize("format", ["chats", "locomo", "longmemeval"])
@LAW
@given(st.dictionaries(st.sampled_from(TURN_FIELDS), VALUES) | VALUES)
def test_any_message_in_a_session_gives_one_clean_item(format, change):
    record = json.loads(json.dumps(RECORDS[format]))
    for turns in turns_of(record, format):
        turns[0] = {**turns[0], **change} if isinstance(change, dict) else change
    rows = parse(record, format)
    assert len(rows) == MESSAGES_IN[format]
    assert_clean(rows)


@pytest.mark.parametrize(
    ("format", "fields"),
    [
        ("chats", ["user_id", "session_id", "timestamp", "agent_id", "metadata"]),
        ("locomo", ["sample_id"]),
        ("longmemeval", ["question_id", "haystack_dates", "haystack_session_ids"]),
    ],
)
@LAW
@given(st.data())
def test_any_value_in_a_session_field_still_gives_one_item_per_message(format, fields, data):
    change = data.draw(st.dictionaries(st.sampled_from(fields), VALUES))
    rows = parse({**RECORDS[format], **change}, format)
    assert len(rows) == MESSAGES_IN[format]
    assert_clean(rows)


@LAW
@given(st.lists(VALUES, max_size=4))
def test_array_and_lines_hold_the_same_records(values):
    values = [{}, *values]  # a first line that starts a list would be read as an array
    data = json.dumps(values).encode()
    array = [record for record, _ in read.read_records(io.BytesIO(data), "a.json")]
    by_line = [record for record, _ in read.read_records(io.BytesIO(lines(*values)), "a.jsonl")]
    assert str(array) == str(by_line) == str(json.loads(data))


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("path", "write"),
    [
        ("f.jsonl", lambda record: lines(record, record)),
        ("f.json", lambda record: json.dumps([record, record], indent=1).encode()),
        ("f.json", lambda record: 2 * json.dumps(record, indent=1).encode()),
        ("f.json", lambda record: lines(record, record)),
        ("f.jsonl.gz", lambda record: gzip.compress(lines(record, record))),
        ("f.jsonl.zst", lambda r: pa.compress(lines(r, r), codec="zstd", asbytes=True)),
    ],
    ids=["lines", "array", "objects", "lines_named_json", "gz", "zst"],
)
def test_each_format_in_each_layout_is_found_out(format, path, write):
    data = write(RECORDS[format])
    rows = parse_bytes(data, path)
    assert detect_file(io.BytesIO(data), path) == format
    assert reasons(rows) == ["ok"] * MESSAGES_IN[format] * 2
    assert rows == parse_bytes(data, path, format)


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_in_parquet_gives_the_same_messages(format, tmp_path):
    pq.write_table(pa.Table.from_pylist([RECORDS[format]]), tmp_path / "f.parquet")
    with (tmp_path / "f.parquet").open("rb") as file:
        rows = list(parse_file(file, "file"))
    assert rows == parse(RECORDS[format], format)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_times_of_any_unit_are_read(unit):
    table = pa.Table.from_pylist([ROW, ROW])
    times = pa.array([AT * 10**6, None], pa.timestamp("ns")).cast(pa.timestamp(unit))
    sink = io.BytesIO()
    pq.write_table(table.set_column(4, "timestamp", times), sink)
    rows = parse_bytes(sink.getvalue(), "f.parquet")
    assert (rows[0].said_at, rows[1].reason) == (AT, "missing_time")


def test_a_parquet_value_that_python_cannot_hold_rejects_its_row_only():
    table = pa.Table.from_pylist([ROW, ROW, ROW])
    times = pa.array([AT * 1000, 2**62, AT * 1000], pa.timestamp("us"))
    texts = pa.Array.from_buffers(pa.utf8(), 3, pa.array([b"good", b"good", b"\xff\xff"]).buffers())
    sink = io.BytesIO()
    table = table.set_column(4, "timestamp", times).set_column(3, "content", texts)
    pq.write_table(table, sink)
    rows = parse_bytes(sink.getvalue(), "f.parquet")
    assert reasons(rows) == ["ok", "wrong_type", "not_utf8"]
    assert [row.source for row in rows] == ["f.parquet:1", "f.parquet:2", "f.parquet:3"]


def test_bad_lines_are_rejected_by_number_and_the_rest_is_read():
    good = lines(ROW)
    data = b"\xef\xbb\xbf" + good + b"\n  \r\n{'a': 1}\n" + b'{"a":"\xff"}\n[1]\n' + good.rstrip()
    rows = parse_bytes(data)
    assert reasons(rows) == ["ok", "bad_json", "not_utf8", "wrong_type", "ok"]
    assert [row.source for row in rows] == [f"file.jsonl:{n}" for n in (1, 4, 5, 6, 7)]


@pytest.mark.parametrize("line", [b"[" * 100_000, b"1" * 5_000, b"nul", b"\xed\xa0\xbd"])
def test_lines_made_to_break_parsers_are_rejected(line):
    first, broken, last = parse_bytes(lines(ROW) + line + b"\n" + lines(ROW))
    assert reasons([first, last]) == ["ok", "ok"]
    assert isinstance(broken, Rejected)


def test_a_line_too_long_is_rejected_and_the_next_is_read(monkeypatch):
    monkeypatch.setattr(read, "LONGEST", 1_000)
    long = {**ROW, "content": "x" * 100_000}
    assert reasons(parse_bytes(lines(ROW, long, ROW))) == ["ok", "too_long", "ok"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (json.dumps([ROW, ROW]).encode()[:-1], ["ok", "ok", "bad_json"]),
        (json.dumps([ROW, ROW]).encode()[:-9], ["ok", "bad_json"]),
        (b"[" + lines(ROW) + b" " + lines(ROW) + b"]", ["ok", "bad_json"]),
        (b"[" + lines(ROW) + b", nonsense, " + lines(ROW) + b"]", ["ok", "bad_json"]),
        (b"[" * 100_000, ["bad_json"]),
        (b'[{"a": "\xff"}, ' + lines(ROW) + b"]", ["not_utf8", "ok"]),
        (b"[" + lines(ROW) + b"]" + lines(ROW), ["ok", "bad_json"]),
        (b"[]", []),
        (b"", []),
        (b"\xef\xbb\xbf \n[" + lines(ROW) + b"]", ["ok"]),
    ],
)
def test_a_broken_array_gives_what_was_read_and_one_rejection(data, expected):
    assert reasons(parse_bytes(data, "f.json", "messages")) == expected


def test_an_element_without_end_is_not_read_to_the_end_of_the_file(monkeypatch):
    monkeypatch.setattr(read, "LONGEST", 1_000)
    file = io.BytesIO(b'[{"a": "' + b"x" * 20_000_000)
    assert reasons(parse_file(file, "f.json", "messages")) == ["bad_json"]


def test_elements_are_told_apart_across_any_chunk_border(monkeypatch):
    data = json.dumps([12345, ROW, "é" * 50, [1, {"a": None}]], ensure_ascii=False).encode()
    expected = json.loads(data)
    for size in range(1, 40):
        monkeypatch.setattr("lightmem_core.formats.elements.CHUNK", size)
        found = list(read.read_records(io.BytesIO(data), "f.json"))
        assert found == [(value, f"f.json:#{n}") for n, value in enumerate(expected, 1)]


@pytest.mark.parametrize("path", ["f.jsonl.gz", "f.jsonl.zst", "f.parquet"])
def test_a_damaged_file_gives_one_rejection_and_no_error(path):
    data = {
        "f.jsonl.gz": gzip.compress(lines(*[ROW] * 9))[:-20],
        "f.jsonl.zst": pa.compress(lines(*[ROW] * 9), codec="zstd", asbytes=True)[:-20],
        "f.parquet": b"PAR1" + b"x" * 100,
    }[path]
    assert reasons(parse_bytes(data, path, "messages"))[-1] == "bad_file"


class Unplugged(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, buffer):
        raise OSError(5, "Input/output error")


def test_a_failing_disk_is_an_error_so_that_the_read_is_tried_again():
    with pytest.raises(OSError, match="Input/output"):
        list(parse_file(io.BufferedReader(Unplugged()), "f.jsonl", "messages"))


@pytest.mark.parametrize("data", [b"{}", b'{"uid": 1, "text": "x"}\n', b"[1, 2]", b"\xff\n" * 200])
def test_a_file_of_no_known_format_says_how_to_name_one(data):
    with pytest.raises(InputError, match=r"--format: messages .*chats .*locomo .*longmemeval"):
        parse_bytes(data, "f.json")


def test_an_unknown_format_name_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"no format 'chat'; .*longmemeval"):
        parse_bytes(lines(ROW), format="chat")


def test_a_bad_first_row_does_not_hide_the_format():
    rows = parse_bytes(b"broken\n" + lines({"user_id": "ada"}, ROW))
    assert reasons(rows) == ["bad_json", "missing_role", "ok"]
