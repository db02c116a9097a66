"""Filters as mem0 writes them, read once into a tree: which entries of a user are wanted.

    {"AND": [{"topic": "travel"}, {"NOT": [{"metadata.source": {"in": ["mail", "web"]}}]}]}

A key names a field of the entry, or a key of its metadata. A value alone must be equal, "*" is any
value, several keys must all hold. A filter only ever narrows what the user of a query has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lightmem_core.errors import RequestError
from lightmem_core.online.comparing import COMPARED, Span, field_of, span_of
from lightmem_core.types import Entry

MOST_PARTS = 200
MOST_LEVELS = 8
MOST_VALUES = 1_000
MOST_CHARACTERS = 4_000
OPERATORS = ("eq", "ne", "in", "nin", "gt", "gte", "lt", "lte", "contains", "icontains")
TIMES = ("created_at", "updated_at", "said_at", "event_at")
TEXTS = ("user_id", "agent_id", "run_id", "session_id", "topic", "speaker")
BY_NAME = ("eq", "ne", "in", "nin")  # of a user: parts of an id are not to be had


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Tree, ...]

    def matches(self, entry: Entry) -> bool:
        return all(part.matches(entry) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Tree, ...]

    def matches(self, entry: Entry) -> bool:
        return any(part.matches(entry) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Neither:
    parts: tuple[Tree, ...]

    def matches(self, entry: Entry) -> bool:
        return not any(part.matches(entry) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Test:
    """`operator` is one of OPERATORS or "any"; times are compared as spans of milliseconds."""

    key: str
    operator: str
    value: Any = None

    def matches(self, entry: Entry) -> bool:
        return COMPARED[self.operator](field_of(entry, self.key), self.value)


Tree: TypeAlias = All | Either | Neither | Test


def parse(raw: object, stored_user: Callable[[str], str] = str) -> Tree:
    """Read a filter. `stored_user` gives the store's id of a user that the filter names.

    Raise RequestError, in one line, for what is no filter and for one that is too large.
    """
    try:
        return _Reading(stored_user).tree(raw, 1)
    except ValueError as error:
        raise RequestError(str(error)) from error


def user_of(tree: Tree) -> str | None:
    """The one user that a filter asks for, None where it asks for none or leaves a choice."""
    if isinstance(tree, Test):
        return tree.value if (tree.key, tree.operator) == ("user_id", "eq") else None
    if isinstance(tree, All):
        named = {user for part in tree.parts if (user := user_of(part)) is not None}
        return named.pop() if len(named) == 1 else None
    return user_of(tree.parts[0]) if isinstance(tree, Either) and len(tree.parts) == 1 else None


class _Reading:
    def __init__(self, stored_user: Callable[[str], str]):
        self.stored_user, self.parts = stored_user, 0

    def tree(self, raw: object, level: int) -> Tree:
        if not isinstance(raw, Mapping):
            raise ValueError(f"a filter must be an object, got {_shown(raw)}")
        if level > MOST_LEVELS:
            raise ValueError(f"the filter is nested deeper than {MOST_LEVELS} levels")
        parts = tuple(part for key, value in raw.items() for part in self._parts(key, value, level))
        return parts[0] if len(parts) == 1 else All(parts)

    def _parts(self, key: object, value: object, level: int) -> Iterator[Tree]:
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise ValueError(f"the filter has more than {MOST_PARTS} parts")
        if not isinstance(key, str) or not key:
            raise ValueError(f"a filter's keys must be texts that are not empty, got {_shown(key)}")
        if key.upper() in ("AND", "OR", "NOT"):
            yield self._joined(key.upper(), value, level)
        elif key == "metadata" and isinstance(value, Mapping):
            for name, wanted in value.items():
                yield from self._parts(f"metadata.{name}", wanted, level + 1)
        else:
            yield from self._tests(key, value)

    def _joined(self, name: str, value: object, level: int) -> Tree:
        raws = [value] if name == "NOT" and isinstance(value, Mapping) else value
        if not isinstance(raws, Sequence) or isinstance(raws, str) or not raws:
            raise ValueError(f"{name} needs a list of filters that is not empty")
        parts = tuple(self.tree(raw, level + 1) for raw in raws)
        return {"AND": All, "OR": Either, "NOT": Neither}[name](parts)

    def _tests(self, key: str, value: object) -> Iterator[Test]:
        if isinstance(value, Mapping):
            if not value:
                raise ValueError(f"{_shown(key)} has no operator: use {', '.join(OPERATORS)}")
            for operator, operand in value.items():
                yield self._test(key, operator, operand)
        elif isinstance(value, list):
            yield self._test(key, "in", value)
        else:
            yield self._test(key, "eq", value)

    def _test(self, key: str, operator: object, value: object) -> Test:
        if operator not in OPERATORS:
            raise ValueError(
                f"{_shown(key)} has no operator {_shown(operator)}: use {', '.join(OPERATORS)}"
            )
        if value == "*" and operator in ("eq", "ne"):
            return Test(key, "any") if operator == "eq" else Test(key, "eq")
        _check_operand(key, str(operator), value)
        return Test(key, str(operator), self._operand(key, str(operator), value))

    def _operand(self, key: str, operator: str, value: Any) -> Any:
        """A value, or each one of a list, as the entry's own values are compared with it."""
        if key == "user_id" and operator not in BY_NAME:
            raise ValueError(f"user_id can be asked for by {', '.join(BY_NAME)}")
        if operator in ("in", "nin"):
            return tuple(self._plain(key, one) for one in value)
        return self._plain(key, value)

    def _plain(self, key: str, value: Any) -> Any:
        if value is None or (key in TEXTS and value == ""):
            return None
        if key in TIMES:
            return _span(key, value)
        if key in TEXTS and not isinstance(value, str):
            raise ValueError(f"{key} is a text, got {_shown(value)}")
        return self.stored_user(value) if key == "user_id" else value


def _check_operand(key: str, operator: str, value: object) -> None:
    values = value if operator in ("in", "nin") else [value]
    if not isinstance(values, list):
        raise ValueError(f"{_shown(key)}: {operator} needs a list, got {_shown(value)}")
    if len(values) > MOST_VALUES:
        raise ValueError(f"{_shown(key)}: a list of more than {MOST_VALUES} values")
    for one in values:
        if not (one is None or isinstance(one, str | int | float | bool)):
            raise ValueError(f"{_shown(key)}: {_shown(one)} is neither text nor number nor flag")
        if isinstance(one, str) and len(one) > MOST_CHARACTERS:
            raise ValueError(f"{_shown(key)}: a text of more than {MOST_CHARACTERS} characters")
    if operator in ("contains", "icontains") and not isinstance(value, str):
        raise ValueError(f"{_shown(key)}: {operator} needs a text, got {_shown(value)}")
    if operator in ("gt", "gte", "lt", "lte") and (value is None or isinstance(value, bool)):
        raise ValueError(f"{_shown(key)}: {operator} needs a number, a text or a time")


def _span(key: str, value: object) -> Span:
    try:
        return span_of(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _shown(value: object) -> str:
    return repr(value)[:60]
