"""The fields of a message row, each read from the row or refused with a BadField.

What is cleaned rather than refused: half a surrogate pair or a NUL in a text becomes U+FFFD, since
chat logs cut emoji in two. In an id either is refused, so that no two users become one.
"""

from __future__ import annotations

import json
import re
from datetime import tzinfo
from typing import Literal

from lightmem_core.formats.timestamps import parse_time

Reason = Literal[
    "bad_json",
    "bad_file",  # damaged Parquet or compressed data
    "not_utf8",
    "too_long",
    "wrong_type",
    "missing_user",
    "missing_session",
    "missing_role",
    "missing_time",
    "bad_time",
    "empty_content",
]

POSITION_LIMIT = 2**31
SORTED = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str)
BROKEN = re.compile("[\0\ud800-\udfff]")
PART_TYPE = re.compile(r"[a-z][a-z0-9_ -]{0,40}", re.IGNORECASE)
KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}


class BadField(Exception):
    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


def identifier(row: dict, field: str, missing: Reason = "wrong_type") -> str:
    """A text, or an integer as its text."""
    value = row.get(field)
    if isinstance(value, str):
        if value.isprintable() and not value.isspace() and value:
            return value
        if not value.strip():
            raise BadField(missing, absent(row, field))
        if BROKEN.search(value):
            raise BadField("wrong_type", f"{field} {value!r} holds a NUL or half a character")
        return value
    if value is None:
        raise BadField(missing, absent(row, field))
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**64:
        return str(value)
    raise BadField("wrong_type", f"{field} is {kind(value)}, expected a text or an integer")


def position(row: dict) -> int:
    field = "position" if row.get("position") is not None else "turn_index"
    value = row.get(field)
    if value is None:
        return -1
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what pandas makes of a column with gaps
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadField("wrong_type", f"{field} is {kind(value)}, expected an integer from 0")
    if not 0 <= value < POSITION_LIMIT:
        raise BadField("wrong_type", f"{field} is not between 0 and {POSITION_LIMIT - 1}")
    return value


def role(row: dict) -> str:
    value = optional_text(row, "role")
    if not value or value.isspace():
        raise BadField("missing_role", absent(row, "role"))
    return value


def optional_text(row: dict, field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadField("wrong_type", f"{field} is {kind(value)}, expected a text")
    return clean(value)


def content(row: dict) -> str:
    value = row.get("content")
    if value is None:
        raise BadField("empty_content", absent(row, "content"))
    if isinstance(value, list):
        value = "\n".join(filter(None, map(part, value)))
    elif not isinstance(value, str):
        raise BadField(
            "wrong_type", f"content is {kind(value)}, expected a text or a list of parts"
        )
    if not value or value.isspace():
        raise BadField("empty_content", "content holds no text")
    return clean(value)


def part(value: object) -> str:
    """One part of OpenAI's list form: its text, or a marker such as "[image]"."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise BadField("wrong_type", f"content holds {kind(value)}, expected parts with a type")
    name, text = value.get("type"), value.get("text")
    if isinstance(name, str) and name.endswith("text") and isinstance(text, str):
        return text
    if not isinstance(name, str) or name.endswith("text") or not PART_TYPE.fullmatch(name):
        raise BadField("wrong_type", f"content holds a part that cannot be read: {encode(value)}")
    return f"[{name.removeprefix('input_').removesuffix('_url')}]"


def said_at(row: dict, timezone: tzinfo) -> int:
    value = row.get("timestamp")
    if value is None or value == "":
        raise BadField("missing_time", absent(row, "timestamp"))
    try:
        return parse_time(value, timezone)
    except (ValueError, OverflowError) as error:
        raise BadField("bad_time", f"timestamp {encode(value)[:80]}: {error}") from error


def metadata(value: object) -> str:
    """A JSON object as its text, keys sorted. Parquet may hold it as that text, or as a map."""
    try:
        if isinstance(value, str):
            value = json.loads(value or "{}")
        if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
            value = dict(value)
        if not isinstance(value, dict):
            raise BadField("wrong_type", f"metadata is {kind(value)}, expected an object")
        return sorted_json(value) if value else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise BadField("wrong_type", f"metadata is no JSON object: {error}") from error


def sorted_json(value: dict) -> str:
    text = SORTED.encode(value)
    if "NaN" in text or "Infinity" in text:  # perhaps a number that JSON does not have
        text = SORTED.encode(json.loads(text, parse_constant=lambda _: None))
    return clean(text)


def clean(text: str) -> str:
    return text if text.isascii() and "\0" not in text else BROKEN.sub("\ufffd", text)


def kind(value: object) -> str:
    return KINDS.get(type(value), "nothing" if value is None else f"a {type(value).__name__}")


def absent(row: dict, field: str) -> str:
    return f"no {field}; the row has: {', '.join(map(str, row)) or 'nothing'}"


def encode(row: object) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return f"<{type(row).__name__} that JSON cannot hold>"
