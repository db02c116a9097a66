"""Stores on an S3 server: that commits are safe there, and what is said where they are not."""

import pickle
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from lightmem_core.config import Config, StoreConfig, load_config
from lightmem_core.errors import ConfigError, LightMemError, StoreError
from lightmem_core.long_term import objects
from lightmem_core.long_term.objects import check_store, s3_filesystem
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.schema import to_table
from lightmem_core.types import Entry, Extracted, Message

MODEL = VectorModel("hash-16", 16)
Bucket = Callable[..., StoreConfig]


@pytest.fixture(autouse=True)
def untested() -> Iterator[None]:
    """A store is tested once in a process; here once in a test."""
    objects._verdict.cache_clear()
    yield
    objects._verdict.cache_clear()


def keys(config: StoreConfig) -> list[str]:
    """All that is in the bucket, by any name."""
    name = config.uri.removeprefix("s3://").partition("/")[0]
    selector = fs.FileSelector(name, recursive=True)
    found = s3_filesystem(config.storage_options).get_file_info(selector)
    return [item.path for item in found if item.type == fs.FileType.File]


# --- the test of conditional writes ------------------------------------------------------------


def test_a_store_that_keeps_conditions_passes_and_nothing_is_left(bucket: Bucket):
    check_store(bucket(), write=True)
    assert keys(bucket()) == []


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written(bucket: Bucket):
    expected = r"s3://bucket-\w+/deep/store would lose memories: .*If-None-Match.*s3\+ddb://"
    for opening in (MemoryStore.create, MemoryStore.open):
        with pytest.raises(StoreError, match=expected):
            opening(bucket(forgetful=True), MODEL)
    assert keys(bucket()) == []


def test_a_store_is_tested_once_in_a_process(bucket: Bucket):
    check_store(bucket())
    before = objects._verdict.cache_info()
    check_store(bucket())
    assert objects._verdict.cache_info().misses == before.misses == 1


def test_of_creates_at_the_same_time_one_wins(bucket: Bucket):
    """What the test relies on: the server checks and writes in one step."""
    from obstore.exceptions import AlreadyExistsError

    store = objects._connect(bucket().uri, bucket().storage_options)

    def create(key: str, body: bytes) -> int:
        try:
            store.put(key, body, mode="create")
        except AlreadyExistsError:
            return 0
        return 1

    for number in range(20):
        with ThreadPoolExecutor(4) as writers:
            won = list(writers.map(lambda n: create(f"key-{number}", b"%d" % n), range(4)))  # noqa: B023
        assert sum(won) == 1
        assert bytes(store.get(f"key-{number}").bytes()) == b"%d" % won.index(1)


def test_who_may_only_read_opens_and_does_not_create(bucket: Bucket):
    MemoryStore.create(bucket(), MODEL)
    reader = bucket(aws_access_key_id="reader")
    assert MemoryStore.open(reader).shards[0].entries_of(["ada"]) == []
    with pytest.raises(StoreError, match="can be read, not written: give credentials that may put"):
        MemoryStore.create(reader, MODEL)


@pytest.mark.parametrize("uri", ["store", "file:///tmp/store", "s3+ddb://b/store?ddbTableName=t"])
def test_what_locks_by_other_means_is_not_tested(tmp_path: Path, uri: str):
    check_store(StoreConfig(uri=uri), write=True)
    assert objects._verdict.cache_info().misses == 0


# --- a store -----------------------------------------------------------------------------------


def stored(
    message: Callable[..., Message], entry: Callable[..., Entry], at: int, user: str = "ada"
) -> Any:
    text = f"said {at}"
    vector = np.eye(16, dtype=np.float32)[at % 16]
    row = Extracted(
        user,
        (message(text, at, user_id=user, state="stored"),),
        (entry(text, at, user_id=user, vector=vector),),
    )
    return to_table([row], Extracted)


def test_what_is_written_is_read_back_by_another_handle_and_survives_compaction(
    bucket: Bucket, message: Callable[..., Message], entry: Callable[..., Entry]
):
    shard = MemoryStore.create(bucket(), MODEL).shards[0]
    for at in (0, 1, 1):
        shard.insert(stored(message, entry, at), "run-1")
    shard.compact()
    shard.insert(stored(message, entry, 2), "run-1")
    again = MemoryStore.open(bucket(), MODEL)
    assert [e.text for e in again.shards[0].entries_of(["ada"])] == ["said 0", "said 1", "said 2"]
    assert again.shards[0].messages.count_rows() == 3


def test_writers_at_the_same_time_lose_and_double_nothing(
    bucket: Bucket, message: Callable[..., Message], entry: Callable[..., Entry]
):
    """Worse than what happens: a shard has one committer."""
    MemoryStore.create(bucket(), MODEL)

    def write(at: int) -> None:
        MemoryStore.open(bucket()).shards[0].insert(stored(message, entry, at // 2), "run-1")

    with ThreadPoolExecutor(3) as writers:
        list(writers.map(write, range(6)))
    shard = MemoryStore.open(bucket()).shards[0]
    assert [e.text for e in shard.entries_of(["ada"])] == ["said 0", "said 1", "said 2"]


def test_options_may_come_from_the_environment(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    for key, value in bucket().storage_options.items():
        name = key.upper() if key.startswith("aws_") else f"AWS_{key.upper()}"
        monkeypatch.setenv(name, value)
    config = StoreConfig(uri=bucket().uri)
    assert MemoryStore.create(config, MODEL).shards[0].entries_of(["ada"]) == []


# --- what is said of a store that cannot be used -----------------------------------------------


def unused_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"aws_endpoint": "http://127.0.0.1:{port}"}, StoreError, "cannot be reached: check the e"),
        ({"allow_http": "false"}, StoreError, "for plain http, allow_http in memory.store.storage"),
        ({"aws_access_key_id": "nobody"}, StoreError, "refuses these credentials: check the acc"),
        ({"aws_regoin": "x"}, ConfigError, "storage_options: Configuration key: 'aws_regoin'"),
    ],
)
def test_an_error_says_in_one_line_and_in_time_what_to_check_and_no_secret(
    bucket: Bucket, options: dict[str, str], error: type[LightMemError], expected: str
):
    options = {key: value.format(port=unused_port()) for key, value in options.items()}
    started = time.monotonic()
    with pytest.raises(error, match=expected) as raised:
        MemoryStore.create(bucket(**options), MODEL)
    assert time.monotonic() - started < 12
    assert "\n" not in str(raised.value)
    shown = f"{raised.value} {raised.getrepr(chain=True)}"
    assert "HUSH" not in shown


def test_a_server_that_takes_connections_and_says_nothing_is_given_up(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(objects.QUICK, "timeout", "300ms")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StoreError, match="cannot be reached"):
            check_store(bucket(aws_endpoint=endpoint))


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket):
    config = bucket().model_copy(update={"uri": "s3://no-such-bucket/store"})
    with pytest.raises(StoreError, match="no bucket for s3://no-such-bucket/store: make it, or"):
        MemoryStore.create(config, MODEL)


# --- the configuration -------------------------------------------------------------------------


def test_a_configuration_shows_no_storage_options(bucket: Bucket, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "memory: {store: {uri: 's3://b/s', storage_options: "
        "{allow_http: true, aws_access_key_id: 123, aws_secret_access_key: HUSH-HUSH}}}"
    )
    config = load_config(path)
    assert config.memory.store.storage_options == {
        "allow_http": "true",
        "aws_access_key_id": "123",
        "aws_secret_access_key": "HUSH-HUSH",
    }
    assert "HUSH" not in f"{config!r} {config}"
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_bad_storage_option_is_named_and_not_shown():
    with pytest.raises(ValueError, match=r"aws_secret_access_key") as raised:
        Config.model_validate(
            {"memory": {"store": {"storage_options": {"aws_secret_access_key": ["HUSH-HUSH"]}}}}
        )
    assert "HUSH" not in str(raised.value)
