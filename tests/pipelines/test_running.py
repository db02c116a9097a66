"""What a run leaves in the ledger and tells the user when it does not end well."""

from pathlib import Path
from typing import Any

import pytest

from lightmem_core import load_config
from lightmem_core.config import StoreConfig
from lightmem_core.errors import StoreError
from lightmem_core.long_term import lease
from lightmem_core.long_term.shard import Shard
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_pipelines import transfer
from lightmem_pipelines.commit import Committer
from lightmem_pipelines.running import running

MODEL = VectorModel("hash-16", 16)


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    return StoreConfig(uri=str(tmp_path / "store"))


@pytest.fixture
def store(config: StoreConfig) -> MemoryStore:
    return MemoryStore.create(config, MODEL)


def failing(store: MemoryStore, kind: str) -> None:
    with running(store, kind, {}):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("kind", "note"),
    [("sleep", "has stored is kept; the same command"), ("erase", "is gone, what it has not may")],
)
def test_a_run_that_fails_says_what_is_left(store: MemoryStore, kind: str, note: str):
    with pytest.raises(ZeroDivisionError) as raised:
        failing(store, kind)
    assert note in " ".join(raised.value.__notes__)
    assert store.runs.newest().status == "failed"


def test_a_run_that_lost_its_lease_is_not_written_as_done(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "LEASE_MS", 0)
    with pytest.raises(StoreError, match="an undo lost its hold"), running(store, "undo", {}):
        pass
    assert store.runs.newest().status == "running"


def test_a_run_that_is_under_way_is_named(store: MemoryStore):
    with running(store, "import", {}), pytest.raises(StoreError, match="an import is under way"):
        running(store, "sleep", {}).__enter__()


def test_a_committer_says_that_the_store_was_switched_when_it_is_called(
    store: MemoryStore, config: StoreConfig
):
    own: Any = Committer.__ray_metadata__.modified_class  # pyright: ignore[reportAttributeAccessIssue]
    committer = own(config, VectorModel("another", 16))
    with pytest.raises(StoreError, match="the configured embedder is another"):
        committer.apply(0, Shard.compact)


def test_an_import_takes_the_stores_options_only_into_its_bucket(
    monkeypatch: pytest.MonkeyPatch,
):
    fakes = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
    options = {"access_key_id": "secret"}
    store = StoreConfig(uri="s3://ours/store", storage_options=options)
    config = load_config(fakes)
    memory = config.memory.model_copy(update={"store": store})
    config = config.model_copy(update={"memory": memory})
    asked: list[Any] = []

    def asks(folder: str, options: Any = None) -> None:
        asked.append(options)
        raise StopIteration

    monkeypatch.setattr(transfer, "filesystem", asks)
    for folder in ("s3://theirs/export", "s3://ours/export"):
        with pytest.raises(StopIteration):
            transfer.import_into(config, folder)
    assert asked == [None, options]
