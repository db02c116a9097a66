"""Tables are made once, with their key and index, however many make them and wherever one dies."""

import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from lancedb.db import DBConnection
from lancedb.table import Table

from lightmem_core.config import StoreConfig
from lightmem_core.encoders.hashing import HashEmbedder
from lightmem_core.errors import StoreError
from lightmem_core.long_term.lease import Leases
from lightmem_core.long_term.restore import Importer
from lightmem_core.long_term.runs import Run, RunLedger
from lightmem_core.long_term.store import MemoryStore, TableNames, VectorModel, connect
from lightmem_core.long_term.tables import keyed_table, message_schema, opened
from lightmem_core.schema import to_table
from lightmem_core.types import Message

MODEL = VectorModel("hash-16", 16)
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("user_id", pa.string())])
MAKERS = 4


@pytest.fixture
def database(store_config: StoreConfig) -> DBConnection:
    Path(store_config.uri).mkdir()
    return connect(store_config)


def insert_at_once(store_config: StoreConfig, name: str) -> int:
    """Insert the same rows from many handles that none of the others' commits has reached."""
    tables = [connect(store_config).open_table(name) for _ in range(MAKERS)]
    rows = pa.Table.from_pylist([{"id": str(n), "user_id": "ada"} for n in range(9)], SCHEMA)
    at_once(lambda n: tables[n].merge_insert("id").when_not_matched_insert_all().execute(rows))
    return connect(store_config).open_table(name).count_rows()


def at_once(work: Callable[[int], object]) -> list[BaseException]:
    start, errors = threading.Barrier(MAKERS), []

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(MAKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def indexed(table: Table) -> list[list[str]]:
    return [index.columns for index in table.list_indices()]


@pytest.mark.parametrize("died_after", ["nothing", "a folder", "the table", "the key"])
def test_what_a_dead_maker_left_out_is_added(
    database: DBConnection, store_config: StoreConfig, died_after: str
):
    if died_after == "a folder":
        (Path(store_config.uri) / "t.lance" / "data").mkdir(parents=True)
    elif died_after != "nothing":
        half = database.create_table("t", schema=SCHEMA)
        if died_after == "the key":
            half.set_unenforced_primary_key("id")  # pyright: ignore[reportAttributeAccessIssue]
    table = keyed_table(database, "t", SCHEMA, "id", "user_id")
    assert indexed(table) == [["user_id"]]
    assert insert_at_once(store_config, "t") == 9


def test_a_table_that_is_whole_is_not_written_to(database: DBConnection):
    made = keyed_table(database, "t", SCHEMA, "id", "user_id").version
    assert keyed_table(database, "t", SCHEMA, "id", "user_id").version == made


def test_a_table_made_by_many_at_once_is_made_once(
    database: DBConnection, store_config: StoreConfig
):
    """What a maker has put into its table is not replaced by another's empty one."""

    def make(number: int) -> None:
        for at in range(8):
            table = keyed_table(connect(store_config), f"t{at}", SCHEMA, "id")
            row = pa.Table.from_pylist([{"id": str(number), "user_id": "ada"}], SCHEMA)
            table.merge_insert("id").when_not_matched_insert_all().execute(row)

    assert at_once(make) == []
    assert [database.open_table(f"t{at}").count_rows() for at in range(8)] == [MAKERS] * 8


def test_half_made_tables_get_their_key_from_many_at_once(
    database: DBConnection, store_config: StoreConfig
):
    database.create_table("t", schema=SCHEMA)
    make = lambda _: keyed_table(connect(store_config), "t", SCHEMA, "id", "user_id")  # noqa: E731
    assert at_once(make) == []
    assert insert_at_once(store_config, "t") == 9


def test_stores_ledgers_and_leases_can_be_made_by_many_at_once(store_config: StoreConfig):
    def make(number: int) -> None:
        store = MemoryStore.create(store_config, MODEL)
        with Leases(store.database).held(f"backfill {number}"):
            store.runs.write(Run(f"run-{number}", "backfill", "done", number))

    assert at_once(make) == []
    ledger = RunLedger(connect(store_config))
    assert [run.id for run in ledger.latest()] == ["run-3", "run-2", "run-1", "run-0"]


def test_a_store_whose_tables_have_no_key_yet_gets_them(store_config: StoreConfig):
    Path(store_config.uri).mkdir()
    names = TableNames(0, 0)
    connect(store_config).create_table(names.messages, schema=message_schema())
    (Path(store_config.uri) / "store.lance" / "data").mkdir(parents=True)
    with pytest.raises(StoreError, match="there is no store"):
        MemoryStore.open(store_config)
    store = MemoryStore.create(store_config, MODEL)
    assert store.shards[0].messages.schema.field("id").metadata
    assert indexed(store.shards[0].messages) == [["user_id"]]
    assert opened(store.database, "none") is None


def test_an_import_goes_on_where_another_writer_was_in_its_way(
    store_config: StoreConfig, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
):
    store = MemoryStore.create(store_config, MODEL)
    table, failed = store.shards[0].messages, []
    merge = table.merge_insert

    def in_the_way(key: str) -> object:
        if not failed:
            failed.append(key)
            raise RuntimeError("Retryable commit conflict for version 3")
        return merge(key)

    monkeypatch.setattr(table, "merge_insert", in_the_way)
    importer = Importer(store, HashEmbedder(MODEL.dim))
    rows = to_table([message()], Message)
    written = {"run_id": "run", "stored_at": 1}
    for name, value in written.items():
        rows = rows.append_column(name, pa.array([value]))
    importer.add("messages", rows)
    assert (failed, table.count_rows()) == (["id"], 1)
