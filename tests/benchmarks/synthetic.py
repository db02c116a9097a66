"""Histories as a backfill extracts them, made up: texts of one topic each, some said again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from lightmem_core.schema import schema_of
from lightmem_core.types import Entry, Extracted, Message, stable_id

DIM = 384
TEXT_WORDS = 20
TOPIC_WORDS = 8  # of a text, out of the TOPIC_SIZE words of its topic
TOPIC_SIZE = 40
REPEATED = 0.05  # of the entries say an earlier one of their user again
WEEK_MS = 604_800_000
TALK = np.array([f"word{n}" for n in range(5_000)])

Embed = Callable[[Sequence[str]], np.ndarray]


def topic_vectors(rng: np.random.Generator, n: int, topics: int) -> np.ndarray:
    """Unit vectors of shape (n, DIM): a mean that all share, the centre of a topic, and noise."""
    centres = rng.standard_normal((topics, DIM), dtype=np.float32)
    mean = 0.6 * rng.standard_normal(DIM, dtype=np.float32)
    noise = 0.7 * rng.standard_normal((n, DIM), dtype=np.float32)
    vectors = centres[rng.integers(0, topics, n)] + mean + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(rng: np.random.Generator, n: int) -> list[str]:
    topics = rng.integers(0, len(TALK) // TOPIC_SIZE, n)
    own = topics[:, None] * TOPIC_SIZE + rng.integers(0, TOPIC_SIZE, (n, TOPIC_WORDS))
    other = rng.integers(0, len(TALK), (n, TEXT_WORDS - TOPIC_WORDS))
    words = TALK[np.concatenate([own, other], axis=1)]
    return [" ".join(line) for line in words.tolist()]


def extracted(
    rng: np.random.Generator, users: Sequence[str], each: int, embed: Embed, session: int = 0
) -> pa.Table:
    """Rows of Extracted, one of `each` entries for every user; each entry has its message."""
    n = len(users) * each
    said = texts(rng, n)
    for again in np.flatnonzero(rng.random(n) < REPEATED).tolist():
        first = again - again % each
        said[again] = said[int(rng.integers(first, again + 1))]
    position = np.tile(np.arange(each), len(users))
    shared = {
        "user_id": np.repeat(np.array(users, dtype=object), each),
        "session_id": [f"s{session}"] * n,
        "position": position,
        "said_at": 1_700_000_000_000 + session * WEEK_MS + position * 30_000,
    }
    messages = _messages(shared, said)
    entries = _entries(shared, said, messages, embed(said))
    offsets = pa.array(np.arange(len(users) + 1) * each, pa.int32())
    columns = {
        "user_id": pa.array(users),
        "messages": pa.ListArray.from_arrays(offsets, messages.to_struct_array().combine_chunks()),
        "entries": pa.ListArray.from_arrays(offsets, entries.to_struct_array().combine_chunks()),
        "duplicates": pa.array([0] * len(users)),
    }
    return pa.table(columns).cast(schema_of(Extracted))


def _messages(shared: dict, said: list[str]) -> pa.Table:
    places = zip(shared["user_id"], shared["session_id"], shared["position"], strict=True)
    given = {
        **shared,
        "id": [stable_id("message", *place) for place in places],
        "role": ["user"] * len(said),
        "content": said,
        "state": ["stored"] * len(said),
    }
    return _filled(given, Message, len(said))


def _entries(shared: dict, said: list[str], messages: pa.Table, vectors: np.ndarray) -> pa.Table:
    ids = messages["id"].to_pylist()
    places = zip(shared["session_id"], shared["position"].tolist(), ids, strict=True)
    given = {
        **shared,
        "id": [stable_id("entry", id) for id in ids],
        "speaker": ["user"] * len(said),
        "text": said,
        "sources": [
            [{"session_id": session, "position": position, "message_id": id}]
            for session, position, id in places
        ],
        "absorbed": [[]] * len(said),
        "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM),
    }
    return _filled(given, Entry, len(said))


def _filled(given: dict, cls: type, n: int) -> pa.Table:
    """A table of all columns of `cls`, those not given with what their type has for nothing."""
    columns = []
    for field in schema_of(cls):
        nothing = {pa.string(): "", pa.int64(): 0}.get(field.type)
        value = given.get(field.name, [None if field.name == "event_at" else nothing] * n)
        columns.append(pa.array(value) if isinstance(value, np.ndarray) else value)
    arrays = [
        c.cast(f.type) if isinstance(c, pa.Array) else pa.array(c, f.type)
        for c, f in zip(columns, schema_of(cls), strict=True)
    ]
    return pa.table(arrays, schema=schema_of(cls))
