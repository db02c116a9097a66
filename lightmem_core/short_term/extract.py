"""The extraction stage: a generator's facts become entries, and every message gets a state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lightmem_core.errors import ComponentError
from lightmem_core.protocols import Generator
from lightmem_core.types import (
    Buffer,
    Entry,
    Extracted,
    Fact,
    Failure,
    Message,
    Source,
    State,
    stable_id,
)


class Extraction:
    """One generator call for a batch of buffers. A failed buffer's messages are quarantined."""

    def __init__(self, generator: Generator):
        self.generator = generator

    def __call__(self, rows: Sequence[Buffer]) -> list[Extracted]:
        asked = [row for row in rows if row.segments]
        answers = self.generator.generate(asked) if asked else []
        if len(answers) != len(asked):
            raise ComponentError(
                f"{type(self.generator).__name__}.generate returned {len(answers)} answers for "
                f"{len(asked)} buffers, expected as many"
            )
        following = iter(answers)
        return [self._extracted(row, next(following) if row.segments else []) for row in rows]

    def _extracted(self, buffer: Buffer, answer: Sequence[Fact | Failure] | str) -> Extracted:
        messages = buffer.messages
        if isinstance(answer, str):
            answer = [Failure(answer, tuple(range(len(messages))))]
        ordinals: Counter[int] = Counter()
        entries = []
        ends: dict[int, tuple[State, str]] = {}
        for item in answer:
            item = self._checked(item, messages)
            if isinstance(item, Failure):
                ends = dict.fromkeys(item.sources, ("quarantined", item.reason)) | ends
                continue
            entries.append(self._entry(item, messages, ordinals[item.sources[0]]))
            ordinals[item.sources[0]] += 1
            ends |= dict.fromkeys(item.sources, ("stored", ""))
        states = (ends.get(index, ("no_facts", "")) for index in range(len(messages)))
        ended = tuple(
            replace(message, state=state, reason=reason)
            for message, (state, reason) in zip(messages, states, strict=True)
        )
        return Extracted(buffer.user_id, ended, tuple(entries), buffer.duplicates)

    def _checked(self, item: Fact | Failure, messages: Sequence[Message]) -> Fact | Failure:
        """The fact or failure with its sources in order, each once."""
        if isinstance(item, Fact) and not item.text.strip():
            raise ComponentError(f"{type(self.generator).__name__} gave a fact without text")
        if not item.sources or not all(0 <= s < len(messages) for s in item.sources):
            raise ComponentError(
                f"{type(self.generator).__name__} gave a {type(item).__name__.lower()} the sources "
                f"{list(item.sources)}, expected some of the buffer's {len(messages)} messages"
            )
        return replace(item, sources=tuple(sorted(set(item.sources))))

    def _entry(self, fact: Fact, messages: Sequence[Message], ordinal: int) -> Entry:
        said = [messages[s] for s in fact.sources]
        sources = tuple(Source(m.session_id, m.position, m.id) for m in said)
        first = messages[fact.sources[0]]
        return Entry(
            id=stable_id("entry", first.user_id, *(m.id for m in said), ordinal, fact.text),
            user_id=first.user_id,
            session_id=first.session_id,
            position=first.position,
            ordinal=ordinal,
            speaker=first.speaker,
            text=fact.text,
            topic=fact.topic,
            said_at=first.said_at,
            event_at=fact.event_at,
            sources=sources,
            agent_id=first.agent_id,
            metadata=first.metadata,
            writer=fact.writer or self.generator.name,
        )


class VerbatimGenerator:
    """One fact per message, as it was said: the generator that needs no model.

    It fails on a buffer that holds the text `fails_on`, as an LLM may, to test what becomes of it.
    """

    name = "verbatim"
    deterministic = True

    def __init__(self, fails_on: str | None = None):
        self.fails_on = fails_on

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact] | str]:
        return [self._facts(buffer) for buffer in buffers]

    def _facts(self, buffer: Buffer) -> list[Fact] | str:
        contents = [m.content for m in buffer.messages]
        if self.fails_on is not None and any(self.fails_on in text for text in contents):
            return "failed_on_purpose"
        return [Fact(text, (index,)) for index, text in enumerate(contents)]
