"""Makers of rows, shared by the tests of the core. Each gives what a test does not care about."""

import runpy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lightmem_core.config import StoreConfig
from lightmem_core.encoders.joint_reading import JointReader
from lightmem_core.llm.chat import NoReplies, Note, Reply
from lightmem_core.llm.usage import counted
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.types import Entry, Message, Source, stable_id

DIM = 16


def make_message(
    content: str = "hello", position: int = 0, session: str = "s1", **other
) -> Message:
    row = {"user_id": "ada", "role": "user", "said_at": position, **other}
    row.setdefault("id", stable_id("message", row["user_id"], session, position, content))
    return Message(session_id=session, position=position, content=content, **row)


def make_entry(text: str, at: int = 0, session: str = "s1", **other) -> Entry:
    """An entry said at `at`, from the message at that position."""
    row = {"user_id": "ada", "speaker": "Ada", "topic": "", "event_at": None, **other}
    row.setdefault("position", at)
    row.setdefault("ordinal", 0)
    row.setdefault("sources", (Source(session, row["position"]),))
    row.setdefault("id", stable_id("entry", row["user_id"], session, row["position"], text))
    return Entry(session_id=session, text=text, said_at=at, **row)


def one_hot(place: int) -> np.ndarray:
    return np.eye(DIM, dtype=np.float32)[place % DIM]


class Kept(NoReplies):
    """Replies and notes, saved in memory."""

    def __init__(self) -> None:
        self.replies: dict[tuple[str, str], Reply] = {}
        self.notes: dict[tuple[str, str, str], Note] = {}

    def get(self, user_id: str, key: str) -> Reply | None:
        return self.replies.get((user_id, key))

    def put(self, user_id: str, stage: str, key: str, reply: Reply) -> None:
        self.replies[user_id, key] = reply

    def note(self, user_id: str, stage: str, note: Note) -> None:
        self.notes[user_id, note.kind, note.key] = note

    @property
    def counts(self) -> dict[str, int]:
        """As a run reports them."""
        return {"asked": len(self.replies), **counted(map(asdict, self.notes.values()))}


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture(scope="session")
def message() -> Callable[..., Message]:
    return make_message


@pytest.fixture(scope="session")
def entry() -> Callable[..., Entry]:
    return make_entry


@pytest.fixture(scope="session")
def axis() -> Callable[[int], np.ndarray]:
    return one_hot


@pytest.fixture
def store_config(tmp_path: Path) -> StoreConfig:
    return StoreConfig(uri=str(tmp_path / "store"))


@pytest.fixture
def store(store_config: StoreConfig) -> MemoryStore:
    return MemoryStore.create(store_config, VectorModel(f"hash-{DIM}", DIM))


@pytest.fixture(scope="session")
def in_order() -> Callable[[Sequence[object], Sequence[object]], bool]:
    """Whether the first sequence is the second with some items left out."""

    def check(part: Sequence[object], whole: Sequence[object]) -> bool:
        remaining = iter(whole)
        return all(item in remaining for item in part)

    return check


class UnsteadyReader(JointReader):
    """Rounds as a device might: differently in a batch of another size."""

    def attention(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[np.ndarray]:
        draw = np.random.default_rng(len(groups))
        return [m + 1e-6 * draw.standard_normal(m.shape) for m in super().attention(groups)]


@pytest.fixture(scope="session")
def unsteady() -> type[JointReader]:
    return UnsteadyReader


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a model of random weights: bert, xlm-r, gpt, llama, bert-lm, reranker."""
    write = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["write"]
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda kind: write(kind, folder))
