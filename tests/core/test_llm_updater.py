"""Updates by a language model: what it is asked about a queue, and what its reply means."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.llm.chat import ChatRequest, NoReplies, Reply, TooLong
from lightmem_core.llm.echo import EchoChat
from lightmem_core.llm.prompting import Prompt
from lightmem_core.long_term.consolidate import Consolidation
from lightmem_core.long_term.llm_updater import LLMUpdater, schema
from lightmem_core.protocols import UpdateQueue
from lightmem_core.types import Decision, Entry, UserEntries

Make = Callable[..., Entry]
MONDAY = 1_683_504_000_000  # 8 May 2023


class Says(EchoChat):
    """A model that gives its replies in turn, the last for ever, and remembers what it was asked.

    It reads at most `lines` lines.
    """

    def __init__(self, *replies: object, lines: int = 99):
        super().__init__(WordTokenizer())
        self.replies = [r if isinstance(r, str) else json.dumps({"decision": r}) for r in replies]
        self.lines = lines
        self.asked: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> Reply:
        if request.messages[1]["content"].count("\n") >= self.lines:
            raise TooLong("the prompt")
        self.asked.append(request)
        return Reply(self.replies[min(len(self.asked), len(self.replies)) - 1], self.name, 1, 1)


@pytest.fixture
def queue(entry: Make) -> UpdateQueue:
    rows = [
        entry(text, MONDAY + at, speaker="Ann", id=f"ada.{at}")
        for at, text in enumerate(("Ann has a\ncat.", "Ann has a cat, Tom.", "Ann has a dog."))
    ]
    return UpdateQueue(rows[0], ((rows[1], 0.9), (rows[2], 0.8)))


def decided(chat: EchoChat, *queues: UpdateQueue, retries: int = 2) -> list[Decision | str | None]:
    return LLMUpdater(chat, NoReplies(), retries=retries).decide(queues)


def test_an_entry_is_shown_with_the_later_ones_and_their_numbers(queue: UpdateQueue):
    stage = LLMUpdater(Says({"action": "keep"}), NoReplies())
    request = stage.render(queue)
    assert request.messages[0]["content"] == Prompt.of("update").text
    assert request.messages[1]["content"].splitlines() == [
        "old: Mon 2023-05-08 Ann: Ann has a cat.",
        "later:",
        "1 Mon 2023-05-08 Ann: Ann has a cat, Tom.",
        "2 Mon 2023-05-08 Ann: Ann has a dog.",
    ]
    assert stage.render(queue) == request


@pytest.mark.parametrize(
    ("said", "action", "successor", "text"),
    [
        ({"action": "merge", "entry": 1}, "merge", "ada.1", ""),
        ({"action": "delete", "entry": 2}, "delete", "ada.2", ""),
        ({"action": "update", "entry": 1, "text": " So\n it is. "}, "update", "ada.1", "So it is."),
        ({"action": "merge", "entry": 2, "text": ""}, "merge", "ada.2", ""),
        ({"action": "delete", "entry": 1, "text": None}, "delete", "ada.1", ""),
    ],
)
def test_a_decision_names_its_later_entry_and_who_decided(
    queue: UpdateQueue, said: dict, action: str, successor: str, text: str
):
    (found,) = decided(Says(said), queue)
    similarity = 0.9 if successor == "ada.1" else 0.8
    by = f"echo {Prompt.of('update').name}"
    writer = by if action == "update" else ""
    assert found == Decision(  # pyright: ignore
        "ada",
        "ada.0",
        action,  # pyright: ignore
        successor,
        similarity,
        by,
        text,
        writer=writer,
    )


@pytest.mark.parametrize("said", [{"action": "keep"}, {"action": "keep", "entry": 0, "text": ""}])
def test_to_keep_is_a_decision(queue: UpdateQueue, said: dict):
    (found,) = decided(Says(said), queue)
    assert isinstance(found, Decision)
    assert (found.action, found.entry_id, found.successor) == ("keep", "ada.0", "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "merge", "entry": 3},
        {"action": "merge", "entry": 0},
        {"action": "merge", "entry": "1"},
        {"action": "merge"},
        {"action": "merge", "entry": 1, "text": "New."},
        {"action": "update", "entry": 1},
        {"action": "update", "entry": 1, "text": " \n"},
        {"action": "update", "entry": 1, "text": "x" * 501},
        {"action": "forget", "entry": 1},
        "keep",
        [],
        None,
        "not json",
    ],
)
def test_what_cannot_be_decided_is_shown_to_the_model_and_then_kept(
    queue: UpdateQueue, wrong: object
):
    chat = Says(wrong, wrong, {"action": "delete", "entry": 1})
    (found,) = decided(chat, queue)
    assert isinstance(found, Decision)
    assert found.action == "delete"
    assert [len(r.messages) for r in chat.asked] == [2, 4, 4]
    assert decided(Says(wrong), queue) == ["llm_bad_reply"]


def test_a_decision_that_was_cut_is_none(queue: UpdateQueue):
    text = json.dumps({"decision": {"action": "update", "entry": 1, "text": "Ann has a cat."}})
    for end in range(len(text) - 1):
        found = LLMUpdater(Says(), NoReplies()).parse(
            Reply(text[:end], "echo", 1, 1, finish="length"), queue
        )
        assert (found.value, len(found.problems)) == (None, 1)


def test_a_queue_too_long_for_the_model_loses_its_least_similar(entry: Make):
    rows = [entry(f"It rains {at}.", at) for at in range(9)]
    long = UpdateQueue(rows[0], tuple((e, 1 - e.said_at / 10) for e in rows[1:]))
    chat = Says({"action": "merge", "entry": 2}, lines=4)
    (found,) = decided(chat, long)
    assert isinstance(found, Decision)
    assert found.successor == rows[2].id
    asked = [r.messages[1]["content"] for r in chat.asked]
    assert [said.count("\n") for said in asked if said.startswith("old: ")] == [3]
    assert decided(Says("", lines=1), long) == ["too_long"]


def test_what_another_agent_was_told_decides_nothing(entry: Make):
    mine, other = entry("It rains.", 1), entry("It rains.", 2, agent_id="coach")
    chat = Says({"action": "merge", "entry": 1})
    assert decided(chat, UpdateQueue(mine, ((other, 1.0),))) == [None]
    assert chat.asked == []
    third = entry("It rains!", 3)
    (found,) = decided(chat, UpdateQueue(mine, ((other, 1.0), (third, 0.9))))
    assert isinstance(found, Decision)
    assert found.successor == third.id


def test_decisions_do_not_depend_on_the_batch(entry: Make):
    chat = EchoChat(WordTokenizer(), fails_on="snow")
    texts = ("It rains.", "It snows.", "It hails.", "snow")
    rows = [entry(text, at, vector=np.eye(4, dtype=np.float32)[0]) for at, text in enumerate(texts)]
    queues = [UpdateQueue(e, ((rows[-1], 1.0),)) for e in rows[:2]]
    queues += [UpdateQueue(rows[0], ((rows[2], 0.5),))]
    stage = LLMUpdater(chat, NoReplies())
    together = stage.decide(queues)
    assert together == [stage.decide([queue])[0] for queue in queues]
    assert together[:2] == ["llm_rejected"] * 2
    assert isinstance(together[2], Decision)
    assert stage.decide([]) == []
    (found,) = Consolidation(stage, 20, 0.4)([UserEntries("ada", tuple(rows))])
    assert {(d.action, d.reason) for d in found} == {("keep", "llm_rejected")}


def test_everything_in_the_schema_of_a_decision_is_bounded():
    forms = json.loads(schema(5))["properties"]["decision"]["anyOf"]
    actions = [form["properties"].pop("action")["enum"] for form in forms]
    assert actions == [["keep"], ["merge", "delete"], ["update"]]
    fields = [field for form in forms for field in form["properties"].values()]
    assert [f.get("maximum", f.get("maxLength")) for f in fields] == [5, 5, 500]
