"""Erase a user from the files that runs left beside the tables, and with these from a store."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from lightmem_core.config import StoreConfig
from lightmem_core.errors import StoreError
from lightmem_core.long_term.erase import erase_from_ledger, erase_rows
from lightmem_core.long_term.mentions import Redaction, Traces, pseudonym
from lightmem_core.long_term.objects import filesystem
from lightmem_core.long_term.proof import Proof
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.long_term.tables import of_users, read_batches
from lightmem_core.types import stable_id

REPLIES = "replies"  # the kind of the files that hold what a language model said
PARTS = ".parts"  # beside the runs: where files are while they are written again
BATCH_ROWS = 4_096
BUFFER_BYTES = 1 << 20


@dataclass
class ErasedFiles:
    """`rows` of the user were found in the files of runs; `files` were written again or removed."""

    files: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased, and what is yet to be read to prove it."""

    report: dict[str, Any]
    proof: Proof
    files: list[Path]

    def prove(self) -> None:
        """Read the files that the erase left. Raise StoreError naming one that holds the user.
        Others may write meanwhile: no file is changed, and what they add is not read."""
        self.proof.check(self.files)


def erase_user(store: MemoryStore, place: StoreConfig, user_id: str) -> Erasure:
    """Erase all that a store at `place` holds of a user, under the lease of an erase. It is to be
    proved. Raise StoreError naming what is left."""
    hidden = pseudonym(user_id, store.salt)
    traces = Traces(user_id, _sources(store, user_id), hidden)  # the rows that tell them go last
    proof = Proof.of(store, user_id)
    files = erase_files(place, traces)
    check_files(place, traces)
    ledger = erase_from_ledger(store, user_id)
    proof.check_beside()
    tables = erase_rows(store, user_id)
    report = {
        "tables": [asdict(table) for table in tables],
        "run_files": asdict(files),
        "runs_named": ledger,
        "searched": "files" if "://" not in place.uri else "rows",
    }
    return Erasure(report, proof, proof.files())


def folder_of(user_id: str) -> str:
    """Where a run keeps a user's replies: erasing the user finds them without reading others."""
    return f"{REPLIES}/{stable_id('replies', user_id)}"


def _sources(store: MemoryStore, user_id: str) -> frozenset[str]:
    messages = store.shard_for(user_id).messages
    batches = read_batches(messages, of_users([user_id]), ["source"])
    return frozenset(place for batch in batches for place in batch["source"].to_pylist())


def run_paths(store: StoreConfig) -> tuple[fs.FileSystem, str, list[str]]:
    """The folder of all runs, and the files that they left in it."""
    system, root = filesystem(store.uri, store.storage_options)
    selector = fs.FileSelector(f"{root}/_runs", recursive=True, allow_not_found=True)
    found = system.get_file_info(selector)
    paths = sorted(item.path for item in found if item.type == fs.FileType.File)
    return system, f"{root}/_runs", paths


def _concerned(folder: str, paths: list[str], user_id: str) -> list[str]:
    """The files that may hold a user. Replies are many, and lie in a folder for each user."""
    kept = []
    for path in paths:
        _, *parts = path.removeprefix(f"{folder}/").split("/")
        if parts[:1] != [REPLIES] or "/".join(parts[:2]) == folder_of(user_id):
            kept.append(path)
    return kept


def erase_files(store: StoreConfig, traces: Traces) -> ErasedFiles:
    """Write the files of runs again without the user's rows; those left empty are removed,
    as are those that were cut off while they were written."""
    system, folder, paths = run_paths(store)
    erased = ErasedFiles()
    for path in _concerned(folder, paths, traces.user_id):
        file = RunFile(system, path, traces)
        if not file.finished:
            system.delete_file(path)
        elif rows := file.count():
            file.rewrite(f"{folder}/{PARTS}/.{stable_id(path)}")
            erased.rows += rows
            erased.files += 1
    _drop_reply_folders(system, folder, traces.user_id)
    return erased


def _drop_reply_folders(system: fs.FileSystem, folder: str, user_id: str) -> None:
    """Their names are made of the user's id."""
    runs = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    own = system.get_file_info([f"{run.path}/{folder_of(user_id)}" for run in runs])
    for place in own:
        if place.type == fs.FileType.Directory:
            system.delete_dir(place.path)


def check_files(store: StoreConfig, traces: Traces) -> None:
    """Raise StoreError if a file may still hold the user."""
    system, folder, paths = run_paths(store)
    for path in _concerned(folder, paths, traces.user_id):
        file = RunFile(system, path, traces)
        if not file.finished or file.count():
            raise StoreError(f"{path} may hold the user: end what writes it, and erase again")


@dataclass(frozen=True, slots=True)
class RunFile:
    """A Parquet, JSON or JSON lines file, and what tells the rows that must go."""

    system: fs.FileSystem
    path: str
    traces: Traces

    @property
    def finished(self) -> bool:
        """Whether the file is whole. What is being written has a name that starts with a dot."""
        if PurePosixPath(self.path).name.startswith("."):
            return False
        try:
            if self.path.endswith(".parquet"):
                pq.read_metadata(self.path, filesystem=self.system)
            elif self.path.endswith(".json"):
                json.loads(b"".join(self._lines()))
        except (pa.ArrowInvalid, ValueError):
            return False
        return True

    def count(self) -> int:
        """Rows of the user; for a JSON value 1 if it names the user. Raise StoreError where a file
        of no known kind does."""
        if self.path.endswith(".parquet"):
            return sum(pc.sum(mask).as_py() or 0 for _, mask in self._batches())  # pyright: ignore[reportAttributeAccessIssue]
        if self.path.endswith(".jsonl"):
            return sum(self._goes(line) for line in self._lines())
        text = b"".join(self._lines())
        if self.path.endswith(".json"):
            value = json.loads(text)
            return int(self._without_user(value) != value)
        if self.traces.user_id.encode("utf-8", "surrogatepass") in text:
            raise StoreError(f"{self.path} may name the user, and is of no kind that runs write")
        return 0

    def rewrite(self, part: str) -> None:
        """Replace the file at once by what is left of it."""
        self.system.create_dir(str(PurePosixPath(part).parent), recursive=True)
        if self.path.endswith(".parquet"):
            kept = self._write_parquet(part)
        else:
            kept = self._write_text(part)
        if kept:
            self.system.move(part, self.path)
        else:
            self.system.delete_file(part)
            self.system.delete_file(self.path)

    def _write_parquet(self, part: str) -> int:
        kept = 0
        with self.system.open_input_file(self.path) as file:
            schema = pq.ParquetFile(file).schema_arrow
        with pq.ParquetWriter(part, schema, filesystem=self.system) as writer:
            for batch, mask in self._batches():
                rows = batch.filter(pc.invert(mask))  # pyright: ignore[reportAttributeAccessIssue]
                if len(rows):
                    writer.write_batch(rows)
                kept += len(rows)
        return kept

    def _write_text(self, part: str) -> int:
        if self.path.endswith(".jsonl"):
            lines = (line for line in self._lines() if not self._goes(line))
        else:
            value = self._without_user(json.loads(b"".join(self._lines())))
            lines = iter([] if value is None else [json.dumps(value).encode()])
        kept = 0
        with self.system.open_output_stream(part) as stream:
            for line in lines:
                stream.write(line)
                kept += 1
        return kept

    def _without_user(self, value: Any) -> Any:
        """None for what is the user's own, such as a reply; what is another's stays as it is."""
        if isinstance(value, dict) and "user_id" in value:
            return None if value["user_id"] == self.traces.user_id else value
        return Redaction(self.traces.user_id, self.traces.hidden).of(value)

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, pa.BooleanArray]]:
        """The rows in batches, each with whether they are the user's."""
        with self.system.open_input_file(self.path) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS):
                if "user_id" in batch.schema.names:
                    own = pc.equal(batch["user_id"], self.traces.user_id)  # pyright: ignore[reportAttributeAccessIssue]
                    yield batch, pc.fill_null(own, False)
                else:
                    yield batch, pa.array(map(self.traces.owns, batch.to_pylist()), pa.bool_())

    def _lines(self) -> Iterator[bytes]:
        """The lines of a text, each with its end."""
        with self.system.open_input_stream(self.path) as stream:
            yield from io.BufferedReader(cast(io.RawIOBase, stream), BUFFER_BYTES)

    def _goes(self, line: bytes) -> bool:
        try:
            row: Any = json.loads(line)
        except ValueError:
            row = {"raw": line.decode("utf-8", "replace")}
        return self.traces.owns(row if isinstance(row, dict) else {"raw": json.dumps(row)})
