"""Read JSON out of a model's reply: as it stands, without what is said around it, or repaired."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

QUOTE = re.compile(r'\\.|"', re.DOTALL)
CUT = re.compile(r'\s*,|[^"{\[]*["{\[]')  # what follows the last bracket where more was to come
DECODER = json.JSONDecoder(strict=False)  # raw control characters may stand in strings
WORDS = 200  # characters of a problem that are shown to the model


@dataclass(frozen=True, slots=True)
class Found:
    """An object with the key that was looked for. If it is not `whole`, the reply ended before it
    was complete, and what was cut in two is left out."""

    value: dict[str, Any]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """What does not fit a schema: where, as keys and places from 0, and why."""

    path: tuple[str | int, ...]
    words: str


def find(text: str, key: str, cut: bool = False) -> Found | None:
    """The last JSON object of a reply that has `key`: models may think aloud before it. `cut` says
    that the reply was ended from outside: then nothing but closed JSON is whole."""
    found = None
    start = text.find("{")
    while start >= 0:
        value, end = _decoded(text, start)
        if isinstance(value, dict) and key in value:
            found = Found(value)
        else:
            end = start + 1
        start = text.find("{", end)
    return found or _repaired(text, key, cut)


def _decoded(text: str, start: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _repaired(text: str, key: str, cut: bool) -> Found | None:
    from json_repair import repair_json

    start = text.rfind("{", 0, max(text.find(f'"{key}"'), 0))
    body = text[start if start >= 0 else max(text.find("{"), 0) :]
    end = max(body.rfind("}"), body.rfind("]")) + 1
    whole = not cut and end > 0 and not _in_string(body[:end]) and not CUT.match(body, end)
    body = body[:end] if whole else _before_the_cut(body)
    try:
        value = repair_json(body, return_objects=True, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    return Found(value, whole) if isinstance(value, dict) and key in value else None


def _before_the_cut(body: str) -> str:
    """All up to the last object that was completed."""
    for end in _from_the_end(body, "}"):
        if not _in_string(body[: end + 1]):
            return body[: end + 1]
    return ""


def _from_the_end(body: str, char: str) -> Iterator[int]:
    place = body.rfind(char)
    while place >= 0:
        yield place
        place = body.rfind(char, 0, place)


def _in_string(body: str) -> bool:
    return QUOTE.findall(body).count('"') % 2 == 1


def problems(value: Any, schema: str) -> list[Problem]:
    """What of the value does not fit the schema, in its order."""
    errors = _validator(schema).iter_errors(value)
    return [Problem(tuple(error.absolute_path), error.message[:WORDS]) for error in errors]


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def strict_object(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these properties, all of them, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
