"""Files as records, one at a time: JSON lines, JSON arrays and objects, and Parquet.

What is damaged becomes a Rejected in the place of a record. Whether a file is text, compressed
(.gz, .zst) or Parquet is told by its name and its first bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lightmem_core.formats.elements import elements
from lightmem_core.formats.fields import clean
from lightmem_core.formats.rows import rejected

LONGEST = 64 << 20  # bytes of a line, characters of an array's element
HEAD = 1 << 16
BATCH_ROWS = 512
BOM = b"\xef\xbb\xbf"
LINES_ENDING = re.compile(r"\.(jsonl|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)
REMOTE = re.compile(r"AWS|S3|GCS|google|Azure|HTTP|curl", re.IGNORECASE)


def read_records(file: BinaryIO, path: str) -> Iterator[tuple[object, str]]:
    """Each record, or Rejected, with its source: "path:line", "path:#element" or "path:row"."""
    path = clean(path)
    try:
        yield from open_records(file, path)
    except (EOFError, zlib.error, pa.ArrowInvalid, OSError) as error:
        if not is_damage(error):
            raise
        detail = f"the rest is skipped, the file is damaged: {error}"
        yield rejected(path, "bad_file", detail, ""), path


def is_damage(error: Exception) -> bool:
    """Whether a file's content is at fault, so that no retry would help."""
    if not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile):
        return True
    return error.errno is None and not REMOTE.search(str(error))


def open_records(file: BinaryIO, path: str) -> Iterator[tuple[object, str]]:
    text = decompressed(file, path)
    head = text.peek(HEAD)
    if head.startswith(b"PAR1") or path.lower().endswith(".parquet"):
        return parquet_rows(cast(BinaryIO, text.detach()), path)
    if is_lines(head.removeprefix(BOM).lstrip(), path):
        return json_lines(text, path)
    return elements(text, path, LONGEST)


def decompressed(file: BinaryIO, path: str) -> io.BufferedReader:
    if path.lower().endswith(".gz"):
        file = cast(BinaryIO, gzip.GzipFile(fileobj=file))
    elif path.lower().endswith(".zst"):
        file = cast(BinaryIO, pa.CompressedInputStream(file, "zstd"))
    return io.BufferedReader(cast(io.RawIOBase, file), buffer_size=1 << 20)


def is_lines(head: bytes, path: str) -> bool:
    """A file that starts like an object holds lines, unless its first line leaves it open."""
    if head.startswith(b"["):
        return False
    first, newline, _ = head.partition(b"\n")
    return (
        bool(LINES_ENDING.search(path))
        or not newline
        or not (first.startswith(b"{") and not first.rstrip().endswith(b"}"))
    )


def json_lines(file: io.BufferedReader, path: str) -> Iterator[tuple[object, str]]:
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        source = f"{path}:{number}"
        if len(line) > LONGEST:
            skip_line(file, line)
            start = line[:HEAD].decode("utf-8", "replace")
            detail = f"the line is longer than {LONGEST:,} bytes"
            yield rejected(source, "too_long", detail, start), source
        elif not line.isspace():
            yield load(line.removeprefix(BOM) if number == 1 else line, source), source


def skip_line(file: io.BufferedReader, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(HEAD)


def load(line: bytes, source: str) -> object:
    try:
        return json.loads(line.decode())  # from bytes, json would let half characters pass
    except UnicodeDecodeError as error:
        detail = f"byte {error.start + 1} of the line is not UTF-8"
        return rejected(source, "not_utf8", detail, line.decode("utf-8", "replace"))
    except RecursionError:
        return rejected(source, "bad_json", "nested too deeply", line.decode())
    except ValueError as error:
        return rejected(source, "bad_json", str(error), line.decode())


def parquet_rows(file: BinaryIO, path: str) -> Iterator[tuple[object, str]]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS):
        try:
            rows: list[object] = batch.to_pylist()
        except (ValueError, OverflowError):
            rows = [
                row_of(batch.slice(n, 1), f"{path}:{number + n + 1}") for n in range(len(batch))
            ]
        for row in rows:
            number += 1
            yield row, f"{path}:{number}"


def row_of(batch: pa.RecordBatch, source: str) -> object:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return rejected(source, "not_utf8", str(error), "")
    except (ValueError, OverflowError) as error:
        return rejected(source, "wrong_type", f"a value that Python cannot hold: {error}", "")
