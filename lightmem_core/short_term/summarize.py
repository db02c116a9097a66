"""Memory entries by a language model: one call for a full buffer.

What the model is asked is pure in the buffer, and so is what its reply means: `render` and `parse`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC
from typing import Any, ClassVar

import regex

from lightmem_core.formats.timestamps import parse_time
from lightmem_core.llm.asking import (
    BAD_REPLY,
    TOO_LONG,
    Asking,
    Parsed,
    Question,
    all_of,
    found_in,
    together,
)
from lightmem_core.llm.chat import Chat, ChatRequest, Reply, SavedReplies, TooLong
from lightmem_core.llm.json_replies import problems, strict_object
from lightmem_core.llm.prompting import CHARS, Prompt, day, one_line, rounded
from lightmem_core.llm.usage import EXTRACT
from lightmem_core.types import Buffer, Fact, Failure, Segment

FACTS = 64  # at most, in one reply: a buffer that gives as many is asked about in halves
HALVINGS = 3  # of a buffer whose replies are cut off; then it is taken for a reply without end
WHEN = regex.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?")
FIELDS = {"from": None, "text": None, "when": "", "topic": ""}


class LLMGenerator:
    """One call per buffer, whatever its messages; a buffer too long for the model is halved at the
    end of a segment.

    `chat_prompt` and `people_prompt` are prompts to use in place of the packaged ones, each a path
    or a name with a text: for a user and an assistant, and where speakers have names. `max_tokens`
    bounds a reply. `name` is the model's; each fact has it with the prompt's as its writer.
    """

    prompts: ClassVar = {"chat_prompt": "extract_chat", "people_prompt": "extract_people"}

    def __init__(
        self,
        chat: Chat,
        saved: SavedReplies,
        *,
        chat_prompt: str | Mapping[str, str] | None = None,
        people_prompt: str | Mapping[str, str] | None = None,
        max_tokens: int = 2_048,
        retries: int = 2,
    ):
        self.name = chat.name
        self.asking = Asking(chat, saved, EXTRACT, retries)
        self.max_tokens = max_tokens
        self.chats = Prompt.of("extract_chat", chat_prompt)
        self.people = Prompt.of("extract_people", people_prompt)

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact | Failure] | str]:
        return together(self._facts(buffer) for buffer in buffers)

    def prompt(self, buffer: Buffer) -> Prompt:
        return self.people if any(m.name for m in buffer.messages) else self.chats

    def render(self, buffer: Buffer) -> ChatRequest:
        messages = self.prompt(buffer).messages("\n".join(lines(buffer)))
        return ChatRequest(messages, schema(rounded(len(buffer.messages))), self.max_tokens)

    def parse(self, reply: Reply, buffer: Buffer) -> Parsed[list[Fact | Failure]]:
        """Of a reply that is bad in part the facts are good, but of the messages that none of them
        names nobody can tell whether they hold any: these fail."""
        parsed = parse(reply, len(buffer.messages))
        if parsed.value is None:
            return Parsed(None, parsed.problems, parsed.rejected, parsed.full)
        writer = f"{self.name} {self.prompt(buffer).name}"
        found: list[Fact | Failure] = [replace(fact, writer=writer) for fact in parsed.value]
        if parsed.problems:
            named = {source for fact in parsed.value for source in fact.sources}
            unnamed = tuple(n for n in range(len(buffer.messages)) if n not in named)
            found += [Failure(BAD_REPLY, unnamed)] if unnamed else []
        return Parsed(found, parsed.problems, parsed.rejected, parsed.full, parsed.worth)

    async def _facts(self, buffer: Buffer, halvings: int = 0) -> list[Fact | Failure] | str:
        several = len(buffer.messages) > 1
        question = Question(
            buffer.user_id,
            tuple(m.id for m in buffer.messages),
            self.render(buffer),
            lambda reply: self.parse(reply, buffer),
            divisible=several and halvings < HALVINGS,
        )
        try:
            return await self.asking.ask(question)
        except TooLong as error:
            if not several:
                return await self.asking.failed(question, TOO_LONG, (str(error),))
            await self.asking.split(question, error)
            return await self._of_halves(buffer, halvings + 1)

    async def _of_halves(self, buffer: Buffer, halvings: int) -> list[Fact | Failure] | str:
        first, second = halves(buffer)
        found = await all_of(self._facts(half, halvings) for half in (first, second))
        if isinstance(found[0], str) and found[0] == found[1]:
            return found[0]
        size = len(first.messages)
        return [
            *_placed(found[0], 0, size),
            *_placed(found[1], size, len(second.messages)),
        ]


def lines(buffer: Buffer) -> Iterator[str]:
    """The messages with their numbers, from 1, under the day on which a session began or went on:
    "3 Ann: what is left of it"."""
    under = None
    for number, m in enumerate(buffer.messages, 1):
        if (m.session_id, day(m.said_at)) != under:
            under = (m.session_id, day(m.said_at))
            yield f"# {under[1]}"
        yield f"{number} {one_line(m.speaker)}: {one_line(m.compressed or m.content)}"


def schema(messages: int) -> str:
    """What a reply about so many messages must be. Every string and list is bounded: without that
    a model can write without end."""
    number = {"type": "integer", "minimum": 1, "maximum": messages}
    fields = {
        "from": {"type": "array", "items": number, "minItems": 1, "maxItems": min(messages, 16)},
        "text": {"type": "string", "minLength": 1, "maxLength": CHARS},
        "when": {"type": "string", "maxLength": 10},
        "topic": {"type": "string", "maxLength": 60},
    }
    facts = {"type": "array", "items": strict_object(fields), "maxItems": FACTS}
    return json.dumps(strict_object({"facts": facts}))


def parse(reply: Reply, messages: int) -> Parsed[list[Fact]]:
    """The valid facts, each once, in their order. A date that cannot be read is left out, a fact
    without text or without messages that exist is rejected."""
    found = found_in(reply, "facts")
    if isinstance(found, Parsed):
        return found
    items = found.value["facts"]
    items = [_known(item) for item in items] if isinstance(items, list) else items
    wrong: dict[int, str] = {}
    general = [] if found.whole else ["the JSON ends too early"]
    for problem in problems({"facts": items}, schema(messages)):
        if len(problem.path) > 1:
            where = ".".join(map(str, problem.path[2:3]))
            wrong.setdefault(int(problem.path[1]), f"{where} {problem.words}".lstrip())
        else:
            general.append(problem.words)
    return _parsed(items if isinstance(items, list) else [], wrong, general)


def _parsed(items: list[Any], wrong: dict[int, str], general: list[str]) -> Parsed[list[Fact]]:
    facts: dict[Fact, None] = {}
    unread = 0
    for place, item in enumerate(items):
        if place in wrong:
            continue
        fact = Fact(
            one_line(item["text"]),
            tuple(sorted({int(number) - 1 for number in item["from"]})),
            one_line(item["topic"]),
            when(item["when"]),
        )
        if not fact.text:
            wrong[place] = "text is empty"
            continue
        unread += fact.event_at is None and item["when"].strip() != ""
        facts[fact] = None
    said = [f"fact {place + 1}: {words}" for place, words in sorted(wrong.items())]
    if full := len(items) >= FACTS:
        general.append(f"there is no room for more than {FACTS} facts")
    rejected = {"facts": len(wrong), "dates": unread}
    none_valid = not facts and (general or said)
    value = None if none_valid else [*facts]
    return Parsed(value, (*general, *said), rejected, full, worth=len(facts))


def _known(item: Any) -> Any:
    """A fact's own fields. Models leave out what is empty, and add what nobody asked for."""
    if not isinstance(item, dict):
        return item
    given = {key: item[key] for key in FIELDS if item.get(key) is not None}
    return {key: value for key, value in FIELDS.items() if value is not None} | given


def when(text: str) -> int | None:
    """A day, or the first of a month or year, as UTC milliseconds; None if it is not one."""
    match = WHEN.fullmatch(text.strip()[:10])
    if match is None:
        return None
    year, month, date = match.groups(default="01")
    try:
        return parse_time(f"{year}-{month}-{date}", UTC)
    except ValueError:
        return None


def halves(buffer: Buffer) -> tuple[Buffer, Buffer]:
    """A buffer of several messages in two, at the end of the segment nearest to the middle, or
    between the messages of its only segment."""
    segments = buffer.segments
    if len(segments) == 1:
        segments = tuple(Segment((message,)) for message in segments[0].messages)
    sizes = [sum(segment.tokens for segment in segments[:end]) for end in range(len(segments) + 1)]
    cut = min(range(1, len(segments)), key=lambda end: abs(2 * sizes[end] - sizes[-1]))
    first, second = segments[:cut], segments[cut:]
    if len(buffer.segments) == 1:
        first, second = ((_joined(part),) for part in (first, second))
    return Buffer(buffer.user_id, first, buffer.duplicates), Buffer(buffer.user_id, second)


def _joined(segments: Sequence[Segment]) -> Segment:
    return Segment(tuple(message for segment in segments for message in segment.messages))


def _placed(found: list[Fact | Failure] | str, start: int, size: int) -> Iterator[Fact | Failure]:
    """What was found in a part of a buffer that begins at message `start`."""
    if isinstance(found, str):
        yield Failure(found, tuple(range(start, start + size)))
        return
    for item in found:
        yield replace(item, sources=tuple(source + start for source in item.sources))
