"""Files in, histories out. What cannot be read is quarantined with its file, line and reason."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import ray.data

from lightmem_core.errors import InputError
from lightmem_core.formats import Rejected, detect_file, parse_file
from lightmem_core.history import ordered_history
from lightmem_core.long_term.store import part_number
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import History, Message, stable_id
from lightmem_pipelines.files import InputFile, RunFiles

BLOCK_MESSAGES = 5_000
BYTES_PER_PARTITION = 8 << 20
UNPACKED = 5  # times as large as its file is what a packed one holds
PACKED = (".gz", ".zst", ".parquet")
MOST_PARTITIONS = 4_096  # of more than 32 GiB each is larger: the shuffle's own books must fit too
PARTS = 8  # in a partition: which one a part falls into is chance, and several even that out
ONE_USER_A_RECORD = {"locomo", "longmemeval"}
# The columns that a source can fill; stages fill the others.
INPUT_COLUMNS = [
    f.name for f in fields(Message) if f.name not in
    {"id", "compressed", "content_tokens", "compressed_tokens", "segment_id", "state", "reason"}
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one input file. `rejected` rows and a summary are written beside the store."""

    run_files: RunFiles
    monitor: Any
    format: str | None = None
    timezone: str = "UTC"

    def messages(self, batch: Any, shards: int, parts: int) -> Iterator[pa.Table]:
        """Read files, and note of each message the part of the input that its user is in."""
        for path in batch["path"]:
            for block in self._blocks(str(path)):
                users = block["user_id"].to_pylist()
                number = {user: part_number(user, shards, parts) for user in set(users)}
                yield block.append_column("part", pa.array([number[user] for user in users]))

    def histories(self, batch: Any) -> Iterator[pa.Table]:
        """Read files in which the messages of each user stand together."""
        for path in batch["path"]:
            blocks = self._blocks(str(path))
            yield from _by_user(m for block in blocks for m in from_table(block, Message))

    def _blocks(self, path: str) -> Iterator[pa.Table]:
        rows: list[Message] = []
        bad = BadRows(self.run_files, self.monitor, path)
        started, messages = time.perf_counter(), 0
        with open_input(self.run_files, path) as file:
            for item in self._items(file, path):
                if isinstance(item, Rejected):
                    bad.add(item)
                    continue
                rows.append(item)
                if len(rows) == BLOCK_MESSAGES:
                    yield self._table(rows, started)
                    messages, rows = messages + len(rows), []
                    if ray.get(self.monitor.stopped.remote()) is not None:
                        return
                    started = time.perf_counter()
        bad.close()
        summary = {"messages": messages + len(rows), "rejected": bad.reasons}
        self.run_files.write_json("read", stable_id(path), summary)
        self.monitor.add.remote(files=1)
        table = self._table(rows, started)
        if rows:
            yield table

    def _items(self, file: Any, path: str) -> Iterator[Message | Rejected]:
        """What a file holds. One of an unknown format is a rejected row: the others go on."""
        try:
            yield from parse_file(file, path, self.format, ZoneInfo(self.timezone))
        except InputError as error:
            yield Rejected(path, "bad_file", str(error), "")
        except OSError as error:
            raise _unreadable(path, error) from error

    def _table(self, rows: Sequence[Message], started: float) -> pa.Table:
        """A block that was begun at `started`: who takes it may let the reader wait."""
        table = to_table(rows, Message).select(INPUT_COLUMNS)
        self.monitor.add.remote(read=len(rows))
        self.monitor.step.remote("read", len(rows), time.perf_counter() - started)
        return table


def open_input(run_files: RunFiles, path: str) -> Any:
    """Open a file of the input. Raise InputError if that cannot be done."""
    system, place = run_files.filesystem(path)
    try:
        return system.open_input_file(place)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(
        f"{path} cannot be read: {reason}. See that it is there and may be read, or leave it out; "
        "the same command then goes on"
    )


class BadRows:
    """The rows of a file that could not be read: quarantined in portions, counted by reason."""

    def __init__(self, run_files: RunFiles, monitor: Any, path: str):
        self.run_files = run_files
        self.monitor = monitor
        self.path = path
        self.reasons: Counter[str] = Counter()
        self.held: list[Rejected] = []
        self.portions = 0

    def add(self, row: Rejected) -> None:
        self.reasons[row.reason] += 1
        self.held.append(row)
        count = self.reasons.total()
        # Waiting lets the cap stop this reader; not for every row, so that it costs nothing.
        if count < 10 or count % 100 == 0:
            self._report()
        if len(self.held) == BLOCK_MESSAGES:
            self._write()

    def close(self) -> None:
        if self.reasons:
            self._report()
        if self.held:
            self._write()

    def _report(self) -> None:
        ray.get(self.monitor.bad.remote(self.path, self.reasons.total()))

    def _write(self) -> None:
        name = f"{stable_id(self.path)}-{self.portions:06}"
        self.run_files.write_rows("quarantine", name, to_table(self.held, Rejected))
        self.held, self.portions = [], self.portions + 1


def read_histories(
    files: Sequence[InputFile], reader: Reader, grouped: bool, shards: int
) -> ray.data.Dataset:
    """A row per user, streamed. The messages are shuffled by user only where that is needed: then
    users whose shard is the same follow each other, and a commit writes to few shards."""
    paths = ray.data.from_items([{"path": f.path} for f in files], override_num_blocks=len(files))
    if grouped or all(_one_user_a_record(f, reader) for f in files):
        return paths.map_batches(reader.histories, batch_size=1, num_cpus=1)
    partitions = sum(map(_unpacked, files)) // BYTES_PER_PARTITION
    partitions = min(max(2, partitions), MOST_PARTITIONS)
    placed = partial(reader.messages, shards=shards, parts=PARTS * partitions)
    messages = paths.map_batches(placed, batch_size=1, num_cpus=1)
    parts = messages.groupby("part", num_partitions=partitions)
    return parts.map_groups(_histories, batch_format="pyarrow", num_cpus=1)


def _histories(part: pa.Table) -> Iterator[pa.Table]:
    yield from _by_user(from_table(part.sort_by("user_id"), Message))


def _by_user(messages: Iterable[Message]) -> Iterator[pa.Table]:
    """The histories of users whose messages stand together, each as soon as it is whole."""
    for _, of_user in groupby(messages, lambda m: m.user_id):
        yield to_table([ordered_history(of_user)], History)


def _unpacked(file: InputFile) -> int:
    """About how many bytes of messages a file holds."""
    return file.size * UNPACKED if file.path.lower().endswith(PACKED) else file.size


def _one_user_a_record(file: InputFile, reader: Reader) -> bool:
    if reader.format is not None:
        return reader.format in ONE_USER_A_RECORD
    with open_input(reader.run_files, file.path) as stream:
        try:
            return detect_file(stream, file.path) in ONE_USER_A_RECORD
        except InputError:
            return False
