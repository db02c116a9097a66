"""The updater that asks a language model: one call for each queue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lightmem_core.llm.asking import TOO_LONG, Asking, Parsed, Question, found_in, together
from lightmem_core.llm.chat import Chat, ChatRequest, Reply, SavedReplies, TooLong
from lightmem_core.llm.json_replies import problems, strict_object
from lightmem_core.llm.prompting import CHARS, Prompt, day, one_line, rounded
from lightmem_core.llm.usage import UPDATE
from lightmem_core.protocols import UpdateQueue
from lightmem_core.types import Decision, Entry


class LLMUpdater:
    """One call for each queue: keep the entry, merge it into a later one, delete it for a later
    one, or write its text anew from itself and a later one.

    `prompt` is one to use in place of the packaged one, a path or a name with a text. A decision's
    reason names the model and the prompt, as does the writer of a new text. A queue too long for
    the model loses its least similar half.
    """

    prompts: ClassVar = {"prompt": "update"}

    def __init__(
        self,
        chat: Chat,
        saved: SavedReplies,
        *,
        prompt: str | Mapping[str, str] | None = None,
        max_tokens: int = 512,
        retries: int = 2,
    ):
        self.prompt = Prompt.of("update", prompt)
        self.name = f"{chat.name} {self.prompt.name}"
        self.asking = Asking(chat, saved, UPDATE, retries)
        self.max_tokens = max_tokens

    def decide(self, queues: Sequence[UpdateQueue]) -> list[Decision | str | None]:
        return together(self._decision(queue) for queue in queues)

    def render(self, queue: UpdateQueue) -> ChatRequest:
        later = [f"{number} {_line(e)}" for number, (e, _) in enumerate(queue.later, 1)]
        data = "\n".join((f"old: {_line(queue.entry)}", "later:", *later))
        return ChatRequest(self.prompt.messages(data), schema(rounded(len(later))), self.max_tokens)

    def parse(self, reply: Reply, queue: UpdateQueue) -> Parsed[Decision]:
        found = found_in(reply, "decision")
        if isinstance(found, Parsed):
            return found
        if not found.whole:
            return Parsed(None, ("the JSON ends too early",), {"decisions": 1})
        said = _said(found.value["decision"])
        count = len(queue.later)
        if problems({"decision": said}, schema(count)):
            wrong = f'"decision" must be one of the four forms, with an "entry" from 1 to {count}'
            return Parsed(None, (wrong,), {"decisions": 1})
        return Parsed(self._meant(said, queue))

    def _meant(self, said: dict[str, Any], queue: UpdateQueue) -> Decision:
        entry, action = queue.entry, said["action"]
        if action == "keep":
            return Decision(entry.user_id, entry.id, "keep", "", 0.0, self.name)
        later, similarity = queue.later[int(said["entry"]) - 1]
        decision = Decision(entry.user_id, entry.id, action, later.id, similarity, self.name)
        if action != "update":
            return decision
        return replace(decision, text=said["text"], writer=self.name)

    async def _decision(self, queue: UpdateQueue) -> Decision | str | None:
        """None if there is no later entry of the same agent: nobody is asked."""
        agent = queue.entry.agent_id
        later = tuple((e, similarity) for e, similarity in queue.later if e.agent_id == agent)
        while later:
            queue = replace(queue, later=later)
            question = Question(
                queue.entry.user_id,
                (queue.entry.id,),
                self.render(queue),
                lambda reply, queue=queue: self.parse(reply, queue),
            )
            try:
                return await self.asking.ask(question)
            except TooLong as error:
                if len(later) == 1:
                    return await self.asking.failed(question, TOO_LONG, (str(error),))
                await self.asking.split(question, error)
                later = later[: len(later) // 2]
        return None


def _said(decision: Any) -> Any:
    """A decision's own fields: some models fill in what does not apply with nothing."""
    if not isinstance(decision, dict):
        return decision
    if decision.get("action") == "keep":
        return {"action": "keep"}
    said = {key: value for key, value in decision.items() if value not in (None, "")}
    if isinstance(text := said.get("text"), str):
        said["text"] = one_line(text)
    return said


def _line(entry: Entry) -> str:
    return f"{day(entry.said_at)} {one_line(entry.speaker)}: {one_line(entry.text)}"


def schema(later: int) -> str:
    """What a decision by so many later entries must be: one of three forms."""
    entry = {"type": "integer", "minimum": 1, "maximum": later}
    text = {"type": "string", "minLength": 1, "maxLength": CHARS}
    forms = (
        _form("keep"),
        _form("merge", "delete", entry=entry),
        _form("update", entry=entry, text=text),
    )
    return json.dumps(strict_object({"decision": {"anyOf": forms}}))


def _form(*actions: str, **fields: Any) -> dict[str, Any]:
    return strict_object({"action": {"type": "string", "enum": actions}, **fields})
