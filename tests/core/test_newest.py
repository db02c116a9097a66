"""The version that a look at the disk tells is the one that LanceDB tells."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from lancedb.table import Table

from lightmem_core.config import StoreConfig
from lightmem_core.long_term.newest import SETTLED_NS, NewestVersion
from lightmem_core.long_term.store import connect

ROW = pa.table({"user_id": ["ada"]})


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return connect(StoreConfig(uri=str(tmp_path))).create_table("entries", ROW)


def age(table: Table, seconds: float) -> None:
    """Let a table's last commit be so long ago."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(Path(table.uri) / "_versions", ns=(then, then))


def asked(newest: NewestVersion, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with each time that the table itself is asked."""
    calls: list[None] = []
    version = type(newest.table).version
    assert isinstance(version, property)

    def told(table: Table) -> int:
        calls.append(None)
        return version.__get__(table)

    monkeypatch.setattr(type(newest.table), "version", property(told))
    return calls


@pytest.mark.parametrize("seconds", [0, 2, 3_600])
def test_every_commit_of_others_is_seen_at_once(table: Table, tmp_path: Path, seconds: float):
    newest = NewestVersion(connect(StoreConfig(uri=str(tmp_path))).open_table("entries"))
    for _ in range(30):
        age(table, seconds)
        assert newest() == table.version
        table.add(ROW)
        assert newest() == table.version
    table.optimize()
    assert newest() == table.version


def test_a_table_that_rests_is_asked_once(table: Table, monkeypatch: pytest.MonkeyPatch):
    newest = NewestVersion(table)
    calls = asked(newest, monkeypatch)
    age(table, 2 * SETTLED_NS / 1e9)
    assert len({newest() for _ in range(9)}) == len(calls) == 1


@pytest.mark.parametrize("seconds", [0, -60])
def test_a_change_that_is_young_or_yet_to_come_is_not_believed(
    table: Table, monkeypatch: pytest.MonkeyPatch, seconds: float
):
    newest = NewestVersion(table)
    calls = asked(newest, monkeypatch)
    age(table, seconds)
    newest(), newest()
    assert len(calls) == 2


def test_a_table_that_is_gone_is_an_error(table: Table, tmp_path: Path):
    newest = NewestVersion(table)
    age(table, 60)
    assert newest() == 1
    connect(StoreConfig(uri=str(tmp_path))).drop_table("entries")
    with pytest.raises((ValueError, RuntimeError, OSError)):
        newest()
