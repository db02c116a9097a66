"""Files in, histories out. What cannot be read is quarantined with its file, line and reason."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import ray.data

from lightmem_core.errors import InputError
from lightmem_core.formats import Rejected, detect_file, parse_file
from lightmem_core.history import ordered_history
from lightmem_core.schema import from_table, to_table
from lightmem_core.types import History, Message, stable_id
from lightmem_pipelines.files import InputFile, RunFiles, filesystem

BLOCK_MESSAGES = 5_000
BYTES_PER_PARTITION = 8 << 20
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

    def __call__(self, batch: Any) -> Iterator[pa.Table]:
        for path in batch["path"]:
            yield from self._blocks(str(path))

    def histories(self, batch: Any) -> Iterator[pa.Table]:
        """Read files in which the messages of each user stand together."""
        for path in batch["path"]:
            held: list[Message] = []
            for block in self._blocks(str(path)):
                for message in from_table(block, Message):
                    if held and message.user_id != held[0].user_id:
                        yield to_table([ordered_history(held)], History)
                        held = []
                    held.append(message)
            if held:
                yield to_table([ordered_history(held)], History)

    def _blocks(self, path: str) -> Iterator[pa.Table]:
        system, place = filesystem(path)
        rows: list[Message] = []
        bad: list[Rejected] = []
        started, messages = time.perf_counter(), 0
        with system.open_input_file(place) as file:
            for item in self._items(file, path):
                if isinstance(item, Rejected):
                    bad.append(item)
                    self._report_bad(path, len(bad))
                    continue
                rows.append(item)
                if len(rows) == BLOCK_MESSAGES:
                    yield self._table(rows)
                    messages, rows = messages + len(rows), []
        if rows:
            yield self._table(rows)
        messages += len(rows)
        self._close(path, messages, bad)
        self.monitor.step.remote("read", messages, time.perf_counter() - started)

    def _items(self, file: Any, path: str) -> Iterator[Message | Rejected]:
        """What a file holds. One of an unknown format is a rejected row: the others go on."""
        try:
            yield from parse_file(file, path, self.format, ZoneInfo(self.timezone))
        except InputError as error:
            yield Rejected(path, "bad_file", str(error), "")

    def _table(self, rows: Sequence[Message]) -> pa.Table:
        self.monitor.add.remote(read=len(rows))
        return to_table(rows, Message).select(INPUT_COLUMNS)

    def _report_bad(self, path: str, count: int) -> None:
        # Waiting lets the cap stop this reader; not for every row, so that it costs nothing.
        if count < 10 or count % 100 == 0:
            ray.get(self.monitor.bad.remote(path, count))

    def _close(self, path: str, messages: int, bad: Sequence[Rejected]) -> None:
        name = stable_id(path)
        reasons = Counter(row.reason for row in bad)
        if bad:
            ray.get(self.monitor.bad.remote(path, len(bad)))
            self.run_files.write_rows("quarantine", name, to_table(bad, Rejected))
        self.run_files.write_json("read", name, {"messages": messages, "rejected": reasons})
        self.monitor.add.remote(files=1)


def read_histories(files: Sequence[InputFile], reader: Reader, grouped: bool) -> ray.data.Dataset:
    """A row per user, streamed. The messages are shuffled by user only where that is needed."""
    paths = ray.data.from_items([{"path": f.path} for f in files], override_num_blocks=len(files))
    if grouped or all(_one_user_a_record(f, reader.format) for f in files):
        return paths.map_batches(reader.histories, batch_size=1, num_cpus=1)
    messages = paths.map_batches(reader, batch_size=1, num_cpus=1)
    partitions = max(2, sum(f.size for f in files) // BYTES_PER_PARTITION)
    users = messages.groupby("user_id", num_partitions=int(partitions))
    return users.map_groups(_history, batch_format="pyarrow", num_cpus=1)


def _history(group: pa.Table) -> pa.Table:
    return to_table([ordered_history(from_table(group, Message))], History)


def _one_user_a_record(file: InputFile, format: str | None) -> bool:
    if format is not None:
        return format in ONE_USER_A_RECORD
    system, place = filesystem(file.path)
    try:
        with system.open_input_file(place) as stream:
            return detect_file(stream, file.path) in ONE_USER_A_RECORD
    except InputError:
        return False
