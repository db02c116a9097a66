"""Arrow schemas of the rows, derived from their types, and the only code that converts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
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
    hints = get_type_hints(cls)
    return pa.schema([(f.name, _arrow_type(hints[f.name])) for f in fields(cls)])


def to_table(rows: Sequence[Any], cls: type) -> pa.Table:
    schema = schema_of(cls)
    getters = _plain_getters(cls)
    columns = {name: [get(row) for row in rows] for name, get in getters}
    return pa.table(columns, schema=schema)


def from_table(table: pa.Table, cls: type[T]) -> list[T]:
    """Rows of `cls` from the columns of its schema; other columns are ignored."""
    names = [f.name for f in fields(cls) if f.name in table.column_names]  # pyright: ignore[reportArgumentType]
    vectors = [name for name in _vector_names(cls) if name in names]
    read = _reader(cls)
    rows = table.select([n for n in names if n not in vectors]).to_pylist()
    for name in vectors:
        for row, vector in zip(rows, _vectors(table[name]), strict=True):
            row[name] = vector
    return [read(row) for row in rows]


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long vectors as float32, shape (rows, dim)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(len(column), -1)


@cache
def _vector_names(cls: type) -> list[str]:
    return [name for name, hint in get_type_hints(cls).items() if _is_vector(hint)]


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
    hints = get_type_hints(cls)
    return [(f.name, _getter(f.name, _row_type(hints[f.name]))) for f in fields(cls)]


def _getter(name: str, inner: type | None) -> Callable[[Any], Any]:
    if inner is None:
        return lambda row: getattr(row, name)
    getters = _plain_getters(inner)
    return lambda row: [{n: get(item) for n, get in getters} for item in getattr(row, name)]


@cache
def _reader(cls: type[T]) -> Callable[[dict[str, Any]], T]:
    converters = {name: _converter(hint) for name, hint in get_type_hints(cls).items()}
    needed = {name: convert for name, convert in converters.items() if convert is not None}

    def read(record: dict[str, Any]) -> T:
        for name, convert in needed.items():
            if name in record:
                record[name] = convert(record[name])
        return cls(**record)

    return read


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    """What makes a field's value of what Arrow holds for it; None if that is the value."""
    if _is_vector(hint):
        return _vector
    if get_origin(hint) is not tuple:
        return None
    inner = _row_type(hint)
    if inner is None:
        return tuple
    read = _reader(inner)
    return lambda items: tuple(map(read, items))
