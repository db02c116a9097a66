"""The input's files, and the Parquet and JSON files that a run leaves beside the store's tables."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from glob import glob
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from lightmem_core.config import StoreConfig
from lightmem_core.errors import InputError
from lightmem_core.long_term.objects import S3, filesystem, place_of, scheme_of

PACKED = ("", ".gz", ".zst")
TEXT = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".parquet", *(kind + packed for kind in TEXT for packed in PACKED))
READERS = 64  # of small files at once: where they are far away each takes long
FILES_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class InputFile:
    path: str
    size: int


@lru_cache(maxsize=16)
def _kept_filesystem(
    uri: str, storage_options: tuple[tuple[str, str], ...]
) -> tuple[fs.FileSystem, str]:
    """A connection that is kept: many small files come and go."""
    return filesystem(uri, dict(storage_options))


def options_for(uri: str, store: StoreConfig) -> dict[str, str] | None:
    """The storage options of a store, for what is in its bucket."""
    of_store = scheme_of(store.uri) in S3 and scheme_of(uri) in S3
    same = place_of(uri).split("/")[0] == place_of(store.uri).split("/")[0]
    return store.storage_options if of_store and same else None


def find_files(sources: Sequence[str], store: StoreConfig | None = None) -> list[InputFile]:
    """The files that sources name: files, folders (searched through), globs and URIs. What is in
    the bucket of `store` is reached with its storage options.

    Raise InputError where one names nothing.
    """
    store = store or StoreConfig()
    found: dict[str, InputFile] = {}
    for source in sources:
        try:
            files = list(_expand(source, options_for(source, store)))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{source} cannot be read: {' '.join(str(error).split())}") from error
        if not files:
            raise InputError(
                f"{source} names no input: give a file, or a folder or glob that holds files "
                f"ending in {', '.join(SUFFIXES)}"
            )
        for file in files:
            found.setdefault(_identity(file.path), file)
    return list(found.values())


def _identity(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)


def _expand(source: str, options: Mapping[str, str] | None) -> Iterator[InputFile]:
    if "://" in source and "*" in place_of(source):
        yield from _matching(source, options)
        return
    paths = [source]
    if "://" not in source and not os.path.exists(source):
        paths = sorted(glob(source, recursive=True))
    for path in paths:
        yield from _files_at(path, options)


def _files_at(source: str, options: Mapping[str, str] | None) -> Iterator[InputFile]:
    system, path = filesystem(source, options)
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        yield InputFile(source, info.size or 0)
    elif info.type == fs.FileType.Directory:
        listing = system.get_file_info(fs.FileSelector(path, recursive=True))
        for item in sorted(listing, key=lambda i: i.path):
            if item.type == fs.FileType.File and _is_input(item.path.removeprefix(path)):
                yield InputFile(_named_like(source, item.path), item.size or 0)


def _matching(source: str, options: Mapping[str, str] | None) -> Iterator[InputFile]:
    """The files under a URI whose path matches the stars in it."""
    fixed = source[: source.index("*")].rpartition("/")[0]
    pattern = place_of(source).split("/")
    for file in _files_at(_named_like(source, place_of(fixed)), options):
        if _matches(place_of(file.path).split("/"), pattern):
            yield file


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern, where ** stands for any number."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _named_like(source: str, path: str) -> str:
    """A path in the file system of a URI or local path, as a source of its own."""
    if "://" not in source:
        return path
    scheme, _, rest = source.partition("://")
    _, mark, query = rest.partition("?")
    return f"{scheme}://{path}{mark}{query}"


def _is_input(path: str) -> bool:
    """Whether a file found in a folder is meant: not what is hidden, nor a store's own files."""
    parts = path.strip("/").split("/")
    own = any(part.startswith((".", "_")) or part.endswith(".lance") for part in parts)
    return path.endswith(SUFFIXES) and not own


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A folder per run. A file is there whole or not at all, and one that is written twice under a
    name is replaced: retries are harmless."""

    store_uri: str
    run_id: str
    storage_options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, store: StoreConfig, run_id: str) -> RunFiles:
        return cls(store.uri, run_id, store.storage_options)

    def filesystem(self, uri: str) -> tuple[fs.FileSystem, str]:
        """As `filesystem`, with the store's options for what is in its bucket."""
        store = StoreConfig(uri=self.store_uri, storage_options=self.storage_options)
        return filesystem(uri, options_for(uri, store))

    def _folder(self, kind: str) -> tuple[fs.FileSystem, str]:
        system, root = _kept_filesystem(self.store_uri, tuple(self.storage_options.items()))
        return system, f"{root}/_runs/{self.run_id}/{kind}"

    def clear(self, kind: str) -> None:
        """Remove what an earlier attempt of the run left."""
        system, folder = self._folder(kind)
        if system.get_file_info(folder).type == fs.FileType.Directory:
            system.delete_dir(folder)

    def write_rows(self, kind: str, name: str, rows: pa.Table) -> None:
        with self._written(kind, f"{name}.parquet") as (system, path):
            pq.write_table(rows, path, filesystem=system)

    def write_json(self, kind: str, name: str, value: Any) -> None:
        written = self._written(kind, f"{name}.json")
        with written as (system, path), system.open_output_stream(path) as stream:
            stream.write(json.dumps(value).encode())

    @contextmanager
    def _written(self, kind: str, name: str) -> Iterator[tuple[fs.FileSystem, str]]:
        """Where to write a file. Object stores show none before it is whole."""
        system, folder = self._folder(kind)
        if not isinstance(system, fs.LocalFileSystem):
            yield system, f"{folder}/{name}"
            return
        system.create_dir(folder, recursive=True)
        unfinished = f"{folder}/.{name}.{os.getpid()}.{threading.get_ident()}"
        yield system, unfinished
        system.move(unfinished, f"{folder}/{name}")

    def names(self, kind: str) -> list[str]:
        """The names of a kind's files, in their order."""
        return [PurePosixPath(path).stem for path in self._listing(kind)[1]]

    def rows_of(self, kind: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of one file."""
        system, folder = self._folder(kind)
        return pq.read_table(f"{folder}/{name}.parquet", columns=columns, filesystem=system)

    def read_json(self, kind: str) -> Iterator[Any]:
        system, paths = self._listing(kind)
        for path in paths:
            yield _json(system, path)

    def json_of(self, kind: str, name: str) -> Any | None:
        """What one file holds; None where there is none."""
        system, folder = self._folder(kind)
        try:
            return _json(system, f"{folder}/{name}.json")
        except FileNotFoundError:
            return None

    def read_deep(self, kind: str) -> Iterator[Any]:
        """What the JSON files of a kind hold that lie in folders of their own, in any order."""
        system, folder = self._folder(kind)
        selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
        found = (item for item in system.get_file_info(selector) if item.extension == "json")
        paths = [item.path for item in found if item.base_name[:1] != "."]
        with ThreadPoolExecutor(READERS) as readers:
            for start in range(0, len(paths), FILES_AT_ONCE):
                part = paths[start : start + FILES_AT_ONCE]
                yield from readers.map(partial(_json, system), part)

    def folder(self, kind: str) -> str:
        """Where the files of a kind are, for a person to look."""
        return f"{self.store_uri}/_runs/{self.run_id}/{kind}"

    def _listing(self, kind: str) -> tuple[fs.FileSystem, list[str]]:
        system, folder = self._folder(kind)
        selector = fs.FileSelector(folder, allow_not_found=True)
        found = (item for item in system.get_file_info(selector) if item.base_name[:1] != ".")
        return system, sorted(item.path for item in found)


def _json(system: fs.FileSystem, path: str) -> Any:
    with system.open_input_stream(path) as stream:
        return json.loads(stream.read())
