"""The defects of the reference implementation (zjunlp/LightMem), and what shows that they cannot
happen here. Names without a file are tests below.

- a worker's exception vanishes:
  test_a_models_exception_is_not_swallowed,
  pipelines/test_sleep: test_an_updater_that_raises_in_a_task_fails_the_run
- every queue is searched for every entry:
  test_each_entry_is_asked_about_once_with_a_queue_of_its_own
- a new text keeps the old vector:
  test_online_changes: test_an_update_gets_a_new_vector_and_keeps_what_was,
  pipelines/test_sleep: test_updated_texts_are_embedded_and_deleted_entries_hidden
- deleting is physical:
  test_what_is_superseded_stays_with_its_history
- decisions read what others change:
  test_decisions_are_taken_on_what_was_read
- the clock restarts with each batch:
  test_the_order_of_entries_does_not_restart_with_each_buffer
- entries of equal time delete each other:
  test_of_two_entries_of_equal_time_one_stays
- an option that no code takes:
  test_config: test_an_unknown_option_is_answered_with_the_known_ones
- options that no code reads:
  test_every_key_of_the_configuration_is_read
- topic ids are counted per process:
  test_ids_are_the_same_in_every_process
- the clock is shared by the users of a process:
  test_users_of_one_process_do_not_touch_each_other
- turns in a buffer are lost at exit:
  test_no_message_stays_behind_in_a_stage
- a search gives bare strings:
  test_retrieve: test_a_hit_carries_its_entry_and_all_scores
- documented defaults differ from those of the code:
  test_config: test_the_laptop_configuration_is_the_built_in_one
- an online update stores nothing:
  test_what_is_said_online_is_stored
- one instance for all who use the tools, who name no user; its configuration is shown with its key:
  serve/test_mcp: test_the_user_is_that_of_the_key_whatever_the_model_says,
  serve/test_mcp: test_no_tool_shows_a_key_or_how_the_store_is_reached
- storing does nothing in some modes:
  test_every_stage_stores_whatever_the_parts
- a round trip and an insert per memory:
  test_many_memories_are_one_commit
- TLS is not verified:
  test_no_code_turns_off_the_check_of_certificates
- compression leaves nothing:
  test_sensory: test_a_compressor_that_gives_nothing_leaves_the_original
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from lightmem_core import factory
from lightmem_core.config import Config, MemoryConfig
from lightmem_core.history import ordered_history
from lightmem_core.long_term.apply import Phase, apply_decisions
from lightmem_core.long_term.consolidate import Consolidation
from lightmem_core.long_term.embed import Embedding
from lightmem_core.long_term.retrieve import Query, Retrieval
from lightmem_core.long_term.rules import RuleUpdater
from lightmem_core.long_term.store import MemoryStore
from lightmem_core.online.service import Incoming
from lightmem_core.online.writer import OnlineWriter
from lightmem_core.protocols import UpdateQueue
from lightmem_core.schema import to_table
from lightmem_core.sensory.compress import Compression
from lightmem_core.sensory.segment import Segmentation
from lightmem_core.short_term.extract import Extraction
from lightmem_core.types import (
    Buffer,
    Entry,
    Extracted,
    History,
    Message,
    Segment,
    UserEntries,
)

ROOT = Path(__file__).parents[2]
FAKES = {
    "tokenizer": {"use": "words"},
    "compressor": {"use": "none"},
    "segmenter": {"use": "fixed", "options": {"size": 3}},
    "generator": {"use": "verbatim"},
    "embedder": {"use": "hash", "options": {"dim": 16}},
    "updater": {"use": "rules"},
    "buffer_tokens": 12,
}


def build(histories: Sequence[History], **parts: object) -> list[Extracted]:
    """All stages of a backfill, one after the other."""
    config = MemoryConfig.model_validate({**FAKES, **parts})
    rows = list(histories)
    for stage in factory.stages(config):
        rows = stage(rows)  # pyright: ignore[reportArgumentType]
    return rows  # pyright: ignore[reportReturnType]


def entries_of(rows: Sequence[Extracted]) -> list[Entry]:
    return [entry for row in rows for entry in row.entries]


@pytest.fixture
def told(message: Callable[..., Message]) -> Callable[..., History]:
    """A session whose messages all have the same time, as dates without a time of day give."""

    def make(*texts: str, user: str = "ada") -> History:
        rows = (
            message(text, at, user_id=user, said_at=1_000, id="") for at, text in enumerate(texts)
        )
        return ordered_history(rows)

    return make


TALK = (
    *("I live in Porto.", "It rains all week here.", "We adopted a beagle, Snoopy."),
    *("My sister paints.", "I now live in Lima.", "The beagle eats shoes.", "Tyres are expensive."),
)


class Broken:
    """Every model at once, and none of them works."""

    name, dim = "broken", 16

    def fail(self, *_: object) -> list:
        raise RuntimeError("the model died")

    compress = cut = generate = encode = decide = count = fail


BUFFER = Buffer("ada", (Segment((Message("ada", "s1", 0, "user", "hi", 0),)),))


@pytest.mark.parametrize(
    "stage", ["compress", "segment", "extract", "embed", "consolidate", "search"]
)
def test_a_models_exception_is_not_swallowed(
    stage: str, entry: Callable[..., Entry], store: MemoryStore, axis: Callable[..., np.ndarray]
):  # fmt: skip
    broken = Broken()
    two = tuple(entry("It rains.", at, vector=axis(0)) for at in (1, 2))
    calls = {
        "compress": lambda: Compression(broken, broken)([History("ada", BUFFER.messages)]),
        "segment": lambda: Segmentation(broken)([History("ada", BUFFER.messages)]),
        "extract": lambda: Extraction(broken)([BUFFER]),
        "embed": lambda: Embedding(broken)([Extracted("ada", (), two)]),  # pyright: ignore[reportArgumentType]
        "consolidate": lambda: Consolidation(broken, 5, 0.1)([UserEntries("ada", two)]),  # pyright: ignore[reportArgumentType]
        "search": lambda: Retrieval(broken, store)([Query("ada", "rain")]),  # pyright: ignore[reportArgumentType]
    }
    with pytest.raises(RuntimeError, match="the model died"):
        calls[stage]()


class Asked:
    """An updater that keeps every entry and remembers the queues it was given."""

    def __init__(self) -> None:
        self.queues: list[UpdateQueue] = []

    def decide(self, queues: Sequence[UpdateQueue]) -> list[None]:
        self.queues += queues
        return [None for _ in queues]


def test_each_entry_is_asked_about_once_with_a_queue_of_its_own(
    entry: Callable[..., Entry], axis: Callable[..., np.ndarray]
):
    """However many are alike, the work grows with k, not with the number of other queues."""
    alike = tuple(entry(f"It rains, {at}.", at, vector=axis(0)) for at in range(60))
    updater = Asked()
    Consolidation(updater, 3, 0.5)([UserEntries("ada", alike)])
    asked = [queue.entry.id for queue in updater.queues]
    assert sorted(asked) == sorted(e.id for e in alike[:-1])  # the last has no later ones
    assert sum(len(queue.later) for queue in updater.queues) == 57 * 3 + 2 + 1


def test_what_is_said_online_is_stored(tmp_path: Path):
    memory = MemoryConfig.model_validate(FAKES | {"store": {"uri": str(tmp_path)}})
    writer = OnlineWriter(Config(memory=memory))
    writer.start()
    writer.add("ada", "s1", [Incoming("user", "I live in Porto.", 1_000)])
    writer.flush("ada")
    writer.close()
    store = MemoryStore.open(memory.store)
    assert [e.text for e in store.shard_for("ada").entries_of(["ada"])] == ["I live in Porto."]


def test_what_is_superseded_stays_with_its_history(
    store: MemoryStore, told: Callable[..., History]
):
    rows = build([told(*TALK)])
    shard = store.shards[0]
    shard.insert(to_table(rows, Extracted), "run-1")
    held = shard.entries_of(["ada"])
    (decisions,) = Consolidation(RuleUpdater(), 20, -1)([UserEntries("ada", tuple(held))])
    shard.update(to_table(apply_decisions(held, decisions, Phase("night-1")).changed, Entry))
    kept = {e.text: e for e in shard.entries_of(["ada"], tombstones=True)}
    assert sorted(kept) == sorted(TALK)
    old, new = kept["I live in Porto."], kept["I now live in Lima."]
    assert (old.superseded_by, old.changed_by, old.run_id) == (new.id, "night-1", "run-1")
    assert [e.text for e in shard.entries_of(["ada"])] == [t for t in TALK if t != old.text]


def test_decisions_are_taken_on_what_was_read(
    entry: Callable[..., Entry], axis: Callable[..., np.ndarray]
):
    said = ["It rains.", "I live in Porto.", "It rains.", "I now live in Lima.", "It rains."]
    held = tuple(entry(text, at, vector=axis(0)) for at, text in enumerate(said))
    before = [repr(e) for e in held]
    stage = Consolidation(RuleUpdater(), 20, 0.4)
    (decisions,) = stage([UserEntries("ada", held)])
    first = apply_decisions(held, decisions, Phase("night-1")).changed
    assert [repr(e) for e in held] == before
    assert stage([UserEntries("ada", held)]) == [decisions]
    again = apply_decisions(held, decisions[::-1], Phase("night-1")).changed
    assert {repr(e) for e in again} == {repr(e) for e in first}


def test_the_order_of_entries_does_not_restart_with_each_buffer(told: Callable[..., History]):
    one, many = build([told(*TALK)], buffer_tokens=999), build([told(*TALK)], buffer_tokens=4)
    assert (len(one), len(many)) == (1, len(TALK))
    for rows in (one, many, many[::-1]):
        by_order = sorted(entries_of(rows), key=lambda e: e.order)
        assert [e.text for e in by_order] == list(TALK)
        assert len({e.order for e in by_order}) == len(TALK)


def test_of_two_entries_of_equal_time_one_stays(told: Callable[..., History]):
    rows = build([told("I live in Porto.", "I now live in Lima.", "It rains.", "It rains.")])
    held = tuple(sorted(entries_of(rows), key=lambda e: e.order))
    assert len({e.said_at for e in held}) == 1
    (decisions,) = Consolidation(RuleUpdater(), 20, -1)([UserEntries("ada", held)])
    changed = {e.id: e for e in apply_decisions(held, decisions, Phase("night-1")).changed}
    active = [e.text for e in held if changed.get(e.id, e).active]
    assert active == ["I now live in Lima.", "It rains."]


SCRIPT = """
import json, sys
from lightmem_core import factory
from lightmem_core.config import MemoryConfig
from lightmem_core.history import ordered_history
from lightmem_core.types import Message

parts, talk, before = json.loads(sys.stdin.read())
config = MemoryConfig.model_validate(parts)
def build(user, texts):
    said = (Message(user, "s1", at, "user", text, 1_000) for at, text in enumerate(texts))
    rows = [ordered_history(said)]
    for make in (factory.compression, factory.segmentation, factory.buffering, factory.extraction):
        rows = make(config)(rows)
    return rows
for user in before:
    build(user, talk[::-1])
rows = build("ada", talk)
print(json.dumps([[m.id, m.segment_id] for r in rows for m in r.messages]
                 + [[e.id, e.text] for r in rows for e in r.entries]))
"""


def test_ids_are_the_same_in_every_process(told: Callable[..., History]):
    rows = build([told(*TALK)])
    here = [[m.id, m.segment_id] for row in rows for m in row.messages]
    here += [[e.id, e.text] for e in entries_of(rows)]
    for seed, before in (("1", []), ("2", ["bob", "eve"])):
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT], input=json.dumps([FAKES, TALK, before]), check=True,
            capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert json.loads(found.stdout) == here


def test_users_of_one_process_do_not_touch_each_other(told: Callable[..., History]):
    users = [told(*TALK), told(*TALK[::-1], user="bob"), told("Hello.", user="eve")]
    together, apart = build(users), [row for user in users for row in build([user])]
    assert [row.messages for row in together] == [row.messages for row in apart]
    assert [e.id for e in entries_of(together)] == [e.id for e in entries_of(apart)]
    for row in together:
        owners = {m.user_id for m in row.messages} | {e.user_id for e in row.entries}
        assert owners == {row.user_id}
    ids = [m.segment_id for row in together for m in row.messages]
    assert len(set(ids)) == 3 + 3 + 1


def test_no_message_stays_behind_in_a_stage(told: Callable[..., History]):
    config = MemoryConfig.model_validate({**FAKES, "buffer_tokens": 1_000_000})
    history = told("A single short message.")
    rows = factory.segmentation(config)(factory.compression(config)([history]))
    stage = factory.buffering(config)
    for _ in range(2):
        (buffer,) = stage(rows)
        assert [m.content for m in buffer.messages] == ["A single short message."]


@pytest.mark.parametrize(
    "parts",
    [
        {"updater": {"use": "none"}},
        {"compressor": {"use": "none"}},
        {"compressor": {"use": "self-information", "options": {"rate": 0.2, "languages": ["en"]}}},
        {"buffer_tokens": 1},
        {"generator": {"use": "extractive", "options": {"languages": ["en"]}}},
    ],
)
def test_every_stage_stores_whatever_the_parts(
    store: MemoryStore, told: Callable[..., History], parts: dict
):
    rows = build([told(*TALK)], **parts)
    store.shards[0].insert(to_table(rows, Extracted), "run-1")
    assert len(store.shards[0].entries_of(["ada"])) == len(entries_of(rows)) > 3
    stored = store.shards[0].messages.to_arrow().to_pylist()
    assert sorted(row["content"] for row in stored) == sorted(TALK)
    assert {row["state"] for row in stored} <= {"stored", "no_facts"}


def test_many_memories_are_one_commit(
    store: MemoryStore, entry: Callable[..., Entry], axis: Callable[..., np.ndarray]
):
    shard = store.shards[0]
    rows = [
        Extracted(user, (), tuple(entry("x", at, user_id=user, vector=axis(at)) for at in range(9)))
        for user in ("ada", "bob", "eve")
    ]
    before = shard.entries.version
    shard.insert(to_table(rows, Extracted), "run-1")
    assert shard.entries.version == before + 1
    changed = [replace(e, gen=1, superseded_by="x") for row in rows for e in row.entries]
    shard.update(to_table(changed, Entry))
    assert shard.entries.version == before + 2


def keys(model: type[BaseModel]) -> set[str]:
    """The names of all keys of a configuration, the nested ones too."""
    found = set(model.model_fields)
    for field in model.model_fields.values():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= keys(kind)
    return found


def sources() -> list[Path]:
    folders = ("lightmem_core", "pipelines/lightmem_pipelines", "serve/lightmem_serve")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def test_every_key_of_the_configuration_is_read():
    code = "\n".join(f.read_text(encoding="utf-8") for f in sources() if f.name != "config.py")
    read = {key for key in keys(Config) if re.search(rf"\.{key}\b", code)}
    assert read == keys(Config)


def test_no_code_turns_off_the_check_of_certificates():
    off = re.compile(r"verify\s*=\s*False|CERT_NONE|_create_unverified_context|check_hostname\s*=")
    assert [str(f) for f in sources() if off.search(f.read_text(encoding="utf-8"))] == []
