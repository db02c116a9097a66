"""The extraction stage: a generator's facts become entries, and every message gets a state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lightmem_core.errors import ComponentError
from lightmem_core.protocols import Generator
from lightmem_core.types import Buffer, Entry, Extracted, Fact, Message, Source, stable_id


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

    def _extracted(self, buffer: Buffer, answer: list[Fact] | str) -> Extracted:
        messages = buffer.messages
        if isinstance(answer, str):
            failed = tuple(replace(m, state="quarantined", reason=answer) for m in messages)
            return Extracted(buffer.user_id, failed, (), buffer.duplicates)
        ordinals: Counter[int] = Counter()
        entries = []
        for fact in answer:
            fact = self._checked(fact, messages)
            entries.append(self._entry(fact, messages, ordinals[fact.sources[0]]))
            ordinals[fact.sources[0]] += 1
        used = {index for fact in answer for index in fact.sources}
        states = tuple(
            replace(m, state="stored" if index in used else "no_facts")
            for index, m in enumerate(messages)
        )
        return Extracted(buffer.user_id, states, tuple(entries), buffer.duplicates)

    def _checked(self, fact: Fact, messages: Sequence[Message]) -> Fact:
        """The fact with its sources in order, each once."""
        if not fact.text.strip():
            raise ComponentError(f"{type(self.generator).__name__} gave a fact without text")
        if not fact.sources or not all(0 <= s < len(messages) for s in fact.sources):
            raise ComponentError(
                f"{type(self.generator).__name__} gave a fact the sources {list(fact.sources)}, "
                f"expected some of the buffer's {len(messages)} messages"
            )
        return replace(fact, sources=tuple(sorted(set(fact.sources))))

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
            writer=self.generator.name,
        )


class VerbatimGenerator:
    """One fact per message, as it was said: the generator that needs no model.

    It fails on a buffer that holds the text `fails_on`, as an LLM may, to test what becomes of it.
    """

    name = "verbatim"

    def __init__(self, fails_on: str | None = None):
        self.fails_on = fails_on

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact] | str]:
        return [self._facts(buffer) for buffer in buffers]

    def _facts(self, buffer: Buffer) -> list[Fact] | str:
        contents = [m.content for m in buffer.messages]
        if self.fails_on is not None and any(self.fails_on in text for text in contents):
            return "failed_on_purpose"
        return [Fact(text, (index,)) for index, text in enumerate(contents)]
