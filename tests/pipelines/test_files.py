"""Which files a source names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightmem_core.errors import InputError
from lightmem_pipelines.files import find_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "chat1.jsonl", "chat[1].jsonl", "deep/b.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for own in ("store/_runs/r/read/x.json", "store/t.lance/data/x.parquet", ".hidden/x.jsonl"):
        (tmp_path / own).parent.mkdir(parents=True)
        (tmp_path / own).write_text("{}")
    return tmp_path


def names(folder: Path, *sources: str) -> list[str]:
    found = find_files([str(folder / source) for source in sources])
    return [str(Path(file.path).relative_to(folder)) for file in found]


def test_a_folder_gives_its_data_and_neither_hidden_files_nor_those_of_a_store(folder):
    assert names(folder, ".") == ["a.jsonl", "chat1.jsonl", "chat[1].jsonl", "deep/b.parquet"]


def test_a_name_that_looks_like_a_pattern_is_that_file(folder):
    assert names(folder, "chat[1].jsonl") == ["chat[1].jsonl"]
    assert names(folder, "chat*.jsonl") == ["chat1.jsonl", "chat[1].jsonl"]


def test_a_hidden_folder_can_be_named(folder):
    assert names(folder, ".hidden") == [".hidden/x.jsonl"]


def test_a_file_named_twice_is_read_once(folder):
    assert names(folder, "a.jsonl", "deep/../a.jsonl", "a.*") == ["a.jsonl"]


@pytest.mark.parametrize("source", ["missing.jsonl", "*.csv"])
def test_a_source_that_names_nothing_is_an_error(folder, source):
    with pytest.raises(InputError, match="names no input"):
        names(folder, source)
