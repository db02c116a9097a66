"""Arrow schemas of the rows, derived from their types, and the only code that converts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import islice
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

T = TypeVar("T")

SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    np.ndarray: pa.list_(pa.float32()),
}


@cache
def schema_of(cls: type) -> pa.Schema:
    """The schema of a row type: tuples of rows become lists of structs, vectors lists of float."""
    return pa.schema([(name, _arrow_type(hint)) for name, hint in _hints(cls).items()])


def to_table(rows: Sequence[Any], cls: type) -> pa.Table:
    schema = schema_of(cls)
    getters = _plain_getters(cls)
    columns = {name: [get(row) for row in rows] for name, get in getters}
    return pa.table(columns, schema=schema)


def from_table(table: pa.Table, cls: type[T]) -> list[T]:
    """Rows of `cls` from the columns of its schema; other columns are ignored."""
    hints = _hints(cls)
    names = [name for name in hints if name in table.column_names]
    columns = [_values(table[name], hints[name]) for name in names]
    if len(names) == len(hints):
        return list(map(cls, *columns))
    return [cls(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _values(column: pa.ChunkedArray, hint: Any) -> Sequence[Any]:
    """What a field is of each row, made for the whole column at once."""
    if _is_vector(hint):
        return _vectors(column)
    if get_origin(hint) is not tuple:
        return column.to_pylist()
    inner = _row_type(hint)
    if inner is None:
        return list(map(tuple, column.to_pylist()))
    nested = column.combine_chunks()
    items = nested.flatten()
    if not len(items):
        return [()] * len(nested)
    rows = iter(from_table(pa.Table.from_struct_array(items), inner))
    return [tuple(islice(rows, count)) for count in nested.value_lengths().to_pylist()]


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long vectors as float32, shape (rows, dim)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(len(column), -1)


def _vectors(column: pa.ChunkedArray) -> Sequence[np.ndarray | None]:
    if column.null_count or not len(column):
        return [_vector(v) for v in column.to_pylist()]
    return list(vectors_of(column))


def _arrow_type(hint: Any) -> pa.DataType:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _arrow_type(next(a for a in get_args(hint) if a is not type(None)))
    if origin is tuple:
        return pa.list_(_arrow_type(get_args(hint)[0]))
    if origin is Literal:
        return pa.string()
    if is_dataclass(hint):
        return pa.struct(list(schema_of(hint)))  # pyright: ignore[reportArgumentType]
    return SCALARS[hint]


def _is_vector(hint: Any) -> bool:
    return hint == np.ndarray | None


def _vector(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value, np.float32)


def _row_type(hint: Any) -> type | None:
    """X for tuple[X, ...] of rows, else None."""
    inner = get_args(hint)[0] if get_origin(hint) is tuple else None
    return inner if is_dataclass(inner) else None  # pyright: ignore[reportReturnType]


@cache
def _plain_getters(cls: type) -> list[tuple[str, Callable[[Any], Any]]]:
    return [(name, _getter(name, _row_type(hint))) for name, hint in _hints(cls).items()]


def _getter(name: str, inner: type | None) -> Callable[[Any], Any]:
    if inner is None:
        return lambda row: getattr(row, name)
    getters = _plain_getters(inner)
    return lambda row: [{n: get(item) for n, get in getters} for item in getattr(row, name)]
