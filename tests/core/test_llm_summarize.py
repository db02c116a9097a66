"""Facts from a language model: what it is asked about a buffer, and what its reply means."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.errors import ConfigError
from lightmem_core.llm.chat import ChatRequest, NoReplies, Reply, TooLong
from lightmem_core.llm.echo import EchoChat
from lightmem_core.llm.prompting import Prompt
from lightmem_core.short_term.extract import Extraction
from lightmem_core.short_term.summarize import LLMGenerator, halves, schema, when
from lightmem_core.types import Buffer, Extracted, Fact, Failure, Message, Segment, Source

Make = Callable[..., Message]
DAY = 86_400_000
MONDAY = 1_683_504_000_000  # 8 May 2023


class Says(EchoChat):
    """A model that gives the same reply whatever it is asked, and remembers what that was."""

    def __init__(self, *replies: object, finish: str = "stop"):
        super().__init__(WordTokenizer())
        self.replies = [r if isinstance(r, str) else json.dumps({"facts": r}) for r in replies]
        self.finish = finish
        self.asked: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> Reply:
        self.asked.append(request)
        text = self.replies[min(len(self.asked), len(self.replies)) - 1]
        return Reply(text, self.name, 1, 1, finish=self.finish)  # pyright: ignore[reportArgumentType]


class Narrow(EchoChat):
    """A model whose context holds `lines` lines, and whose replies hold `facts` facts."""

    def __init__(self, lines: int = 99, facts: int = 99, **options: str):
        super().__init__(WordTokenizer(), **options)  # pyright: ignore[reportArgumentType]
        self.lines, self.facts, self.calls = lines, facts, 0

    async def complete(self, request: ChatRequest) -> Reply:
        self.calls += 1
        if request.messages[1]["content"].count("\n") > self.lines:
            raise TooLong("the prompt")
        reply = await super().complete(request)
        facts = json.loads(reply.text)["facts"]
        if len(facts) <= self.facts:
            return reply
        cut = json.dumps({"facts": facts[: self.facts + 1]})
        return Reply(cut[:-9], self.name, 1, 1, finish="length")


@pytest.fixture
def buffer(message: Make) -> Callable[..., Buffer]:
    """A buffer of segments, each given by its texts."""

    def make(*segments: Sequence[str], user: str = "ada", **other: object) -> Buffer:
        rows, position = [], 0
        for texts in segments:
            row = []
            for text in texts:
                said = {"user_id": user, "compressed_tokens": 1, "said_at": MONDAY, **other}
                row.append(message(text, position, **said))
                position += 1
            rows.append(Segment(tuple(row)))
        return Buffer(user, tuple(rows))

    return make


def fact(numbers: Sequence[int], text: str = "It rains.", **other: object) -> dict[str, object]:
    return {"from": numbers, "text": text, "when": "", "topic": "", **other}


def generated(chat: EchoChat, *buffers: Buffer) -> list[list]:
    return [list(found) for found in LLMGenerator(chat, NoReplies()).generate(buffers)]


# --- what is asked -----------------------------------------------------------------------------


def test_a_message_is_a_line_with_its_number_and_speaker_under_its_day(message: Make):
    said = [
        message(
            "I  adopted\n2 Bob: a cat", 0, "s1", said_at=MONDAY, compressed="adopted\n2 Bob: cat"
        ),
        message("Nice\x00!", 1, "s1", said_at=MONDAY + 1, role="assistant"),
        message("Late", 2, "s1", said_at=MONDAY + DAY),
        message("Later", 0, "s2", said_at=MONDAY + DAY),
    ]
    request = LLMGenerator(Says([]), NoReplies()).render(Buffer("ada", (Segment(tuple(said)),)))
    system, user = request.messages
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].splitlines() == [
        "# Mon 2023-05-08",
        "1 user: adopted 2 Bob: cat",
        "2 assistant: Nice !",
        "# Tue 2023-05-09",
        "3 user: Late",
        "# Tue 2023-05-09",
        "4 user: Later",
    ]


def test_what_is_asked_depends_on_the_buffer_alone(buffer: Callable[..., Buffer]):
    one, other = buffer(["a", "b"]), buffer(["c"], user="bob")
    stage = LLMGenerator(Says([]), NoReplies())
    first = stage.render(one)
    stage.generate([other, one])
    assert stage.render(one) == first == LLMGenerator(Says([]), NoReplies()).render(one)


def test_the_fixed_part_is_the_same_in_every_call(buffer: Callable[..., Buffer]):
    chats = [buffer(["a"]), buffer(["b", "c"], user="bob"), buffer(["d"], said_at=0)]
    people = [buffer(["a"], name="Ann"), buffer(["b"], name="Bob", user="bob")]
    stage = LLMGenerator(Says([]), NoReplies())
    fixed = [{stage.render(b).messages[0]["content"] for b in part} for part in (chats, people)]
    assert [len(texts) for texts in fixed] == [1, 1]
    assert fixed[0] != fixed[1]


def test_the_packaged_prompts_have_as_many_tokens_as_the_readme_says():
    from lightmem_core.encoders.minilm import MiniLMTokenizer

    prompts = [Prompt.of(name).text for name in ("extract_chat", "extract_people", "update")]
    counts = MiniLMTokenizer().count(prompts)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    told = "{} tokens for a chat with an assistant, {} for people, {} for an update".format(*counts)
    assert told in " ".join(readme.split())
    assert max(counts) <= 250


def test_few_sizes_of_a_buffer_need_a_schema_of_their_own(buffer: Callable[..., Buffer]):
    """Servers make a grammar for each. What the model then says is held to the true size."""
    stage = LLMGenerator(Says([fact([4])]), NoReplies(), retries=0)
    rows = [buffer(["a"] * size) for size in range(1, 41)]
    schemas = [stage.render(row).schema for row in rows]
    assert len(set(schemas)) == 5
    assert schemas[2] == schema(8)
    assert stage.generate([rows[2]]) == ["llm_bad_reply"]


def test_a_prompt_of_ones_own_is_asked_and_named(tmp_path: Path, buffer: Callable[..., Buffer]):
    own = tmp_path / "doctors.md"
    own.write_text("Note symptoms.\n")
    stage = LLMGenerator(Says([fact([1])]), NoReplies(), people_prompt=str(own))
    named, plain = buffer(["a"], name="Ann"), buffer(["a"])
    assert stage.render(named).messages[0]["content"] == "Note symptoms."
    writers = [found[0].writer for found in stage.generate([named, plain])]  # pyright: ignore
    assert [writer[:-8] for writer in writers] == ["echo doctors@", "echo extract_chat@"]
    assert stage.people.name != Prompt.of("extract_people").name
    own.write_text("Note symptoms!")
    assert Prompt.of("extract_people", str(own)).name != stage.people.name


@pytest.mark.parametrize("text", [None, "", " \n", b"\xff"])
def test_a_prompt_that_cannot_be_read_is_named(tmp_path: Path, text: str | bytes | None):
    path = tmp_path / "mine.md"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"the prompt .*mine\.md") as caught:
        Prompt.of("update", str(path))
    assert "\n" not in str(caught.value)


def bounds(part: object) -> list[object]:
    """What of a schema can be endless: every list, string and number without a bound."""
    if not isinstance(part, dict):
        return []
    bound = {"string": "maxLength", "array": "maxItems", "integer": "maximum"}.get(part.get("type"))  # pyright: ignore
    inner = [found for value in part.values() for found in bounds(value)]
    return inner + ([part] if bound and bound not in part else [])


def test_everything_in_the_schema_of_a_reply_is_bounded():
    tree = json.loads(schema(7))
    assert bounds(tree) == []
    item = tree["properties"]["facts"]["items"]
    assert item["properties"]["from"]["items"] == {"type": "integer", "minimum": 1, "maximum": 7}
    assert (item["required"], item["additionalProperties"]) == (list(fact([])), False)


# --- what a reply means ------------------------------------------------------------------------


def test_a_fact_has_its_messages_day_and_topic(buffer: Callable[..., Buffer]):
    reply = [fact([3, 1, 1], " Ann\n has\x00 a cat. ", when="2023-05-07", topic="pets ")]
    (found,) = generated(Says(reply), buffer(["a", "b"], ["c"]))
    writer = f"echo {Prompt.of('extract_chat').name}"
    assert found == [Fact("Ann has a cat.", (0, 2), "pets", MONDAY - DAY, writer)]


def test_an_entry_names_the_model_and_the_prompt_that_wrote_it(buffer: Callable[..., Buffer]):
    stage = Extraction(LLMGenerator(Says([fact([1])]), NoReplies()))
    (entry,) = stage([buffer(["a"])])[0].entries
    assert entry.writer == f"echo {Prompt.of('extract_chat').name}"
    assert entry.sources == (Source("s1", 0, entry.sources[0].message_id),)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2023-05-08", MONDAY),
        ("2023-05", MONDAY - 7 * DAY),
        ("2023", MONDAY - 127 * DAY),
        (" 2023-05-08T1", MONDAY),
        *(
            (text, None)
            for text in ("", "2023-02-30", "soon", "0000-01-01", "8 May 2023", "20230508")
        ),
    ],
)
def test_a_day_is_read_or_left_out(text: str, day: int | None):
    assert when(text) == day


def test_a_date_that_cannot_be_read_costs_the_date_alone_and_is_counted(
    buffer: Callable[..., Buffer], kept
):
    chat = Says([fact([1], when="last week"), fact([1], "x", when="")])
    stage = LLMGenerator(chat, kept)
    (found,) = stage.generate([buffer(["a"])])
    assert [f.event_at for f in found] == [None, None]  # pyright: ignore
    assert kept.counts == {"asked": 1, "rejected_dates": 1}


def test_no_facts_is_an_answer_and_no_reply_is_a_failure(buffer: Callable[..., Buffer]):
    rows = [buffer(["a", "b"])]
    none = Extraction(LLMGenerator(Says([]), NoReplies()))(rows)[0]
    failed = Extraction(LLMGenerator(Says("I cannot."), NoReplies()))(rows)[0]
    assert [(m.state, m.reason) for m in none.messages] == [("no_facts", "")] * 2
    assert [(m.state, m.reason) for m in failed.messages] == [("quarantined", "llm_bad_reply")] * 2


WRONG = [
    fact([3]),
    fact([0]),
    fact([]),
    fact([1, 99]),
    fact(["1"]),  # pyright: ignore[reportArgumentType]
    fact([1], ""),
    fact([1], " \n\x00"),
    fact([1], "x" * 501),
    {"text": "from nowhere"},
    {"from": [1]},
    "a fact",
    None,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_fact_that_is_wrong_is_shown_to_the_model_and_then_rejected(
    buffer: Callable[..., Buffer], kept, wrong: object
):
    chat = Says(
        [fact([1], "Good."), wrong], [wrong, fact([1], "Good.")], [wrong, fact([2], "Last.")]
    )
    row = buffer(["a", "b"])
    (found,) = LLMGenerator(chat, kept).generate([row])
    assert [f.sources for f in found] == [(1,), (0,)]  # pyright: ignore
    assert found[1] == Failure("llm_bad_reply", (0,))
    told = [r.messages[-1]["content"] for r in chat.asked[1:]]
    assert ["fact 2: " in told[0], "fact 1: " in told[1]] == [True, True]
    assert kept.counts == {"asked": 3, "bad": 3, "rejected_facts": 3, "in_part": 1}
    (note,) = (n for n in kept.notes.values() if n.kind == "in_part")
    assert note.about == tuple(m.id for m in row.messages)
    assert len(note.replies) == 3


def test_messages_that_a_bad_reply_does_not_name_are_not_taken_for_empty(
    buffer: Callable[..., Buffer],
):
    chat = Says(json.dumps({"facts": [fact([2], "Good."), fact([3], "Cut.")]})[:-20])
    (row,) = Extraction(LLMGenerator(chat, NoReplies()))([buffer(["a", "b"], ["c"])])
    assert [m.state for m in row.messages] == ["quarantined", "stored", "quarantined"]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_reply_without_one_valid_fact_fails(buffer: Callable[..., Buffer], wrong: object):
    stage = LLMGenerator(Says([wrong]), NoReplies(), retries=0)
    assert stage.generate([buffer(["a", "b"])]) == ["llm_bad_reply"]


def test_what_a_model_leaves_out_or_adds_does_no_harm(buffer: Callable[..., Buffer]):
    reply = [{"from": [1], "text": "Good.", "when": None, "who": "Ann"}]
    (found,) = generated(Says(reply), buffer(["a"]))
    assert [(f.text, f.topic, f.event_at) for f in found] == [("Good.", "", None)]


def test_a_fact_that_is_said_twice_is_one(buffer: Callable[..., Buffer]):
    (found,) = generated(Says([fact([1, 2]), fact([2, 1]), fact([2])]), buffer(["a", "b"]))
    assert [f.sources for f in found] == [(0, 1), (1,)]


def test_text_that_no_table_can_hold_is_made_fit(buffer: Callable[..., Buffer]):
    (found,) = generated(
        Says('{"facts":[{"from":[1],"text":"a\\ud800b","when":"","topic":"\t"}]}'), buffer(["a"])
    )
    assert [(f.text, f.topic) for f in found] == [("a b", "")]
    found[0].text.encode()


# --- too much at once --------------------------------------------------------------------------


def test_a_buffer_too_long_is_halved_at_the_end_of_a_segment(buffer: Callable[..., Buffer]):
    row = buffer(["a"], ["b", "c"], ["d", "e"])
    first, second = halves(row)
    assert [[m.content for m in s.messages] for s in first.segments] == [["a"], ["b", "c"]]
    assert [[m.content for m in s.messages] for s in second.segments] == [["d", "e"]]


def test_a_segment_too_long_is_halved_between_messages(buffer: Callable[..., Buffer]):
    first, second = halves(buffer(["a", "b", "c"]))
    assert [len(s.messages) for half in (first, second) for s in half.segments] in ([1, 2], [2, 1])


@pytest.mark.parametrize("limit", [{"lines": 1}, {"lines": 3}, {"facts": 2}, {"facts": 3}])
def test_facts_keep_their_messages_however_often_a_buffer_is_halved(
    buffer: Callable[..., Buffer], limit: dict[str, int]
):
    row = buffer(["a", "b"], ["c"], ["d", "e", "f", "g"], ["h"])
    (found,) = generated(Narrow(**limit), row)
    assert [(f.text, f.sources) for f in found] == [
        (m.content, (index,)) for index, m in enumerate(row.messages)
    ]


def test_a_message_too_long_for_the_model_fails_alone(buffer: Callable[..., Buffer]):
    class Short(Narrow):
        async def complete(self, request: ChatRequest) -> Reply:
            if "very long" in request.messages[1]["content"]:
                raise TooLong("the prompt")
            return await super().complete(request)

    (row,) = Extraction(LLMGenerator(Short(), NoReplies()))(
        [buffer(["a", "very long", "c"], ["d"])]
    )
    assert [(m.state, m.reason) for m in row.messages] == [
        ("stored", ""),
        ("quarantined", "too_long"),
        ("stored", ""),
        ("stored", ""),
    ]
    assert [e.text for e in row.entries] == ["a", "c", "d"]


def test_a_model_that_never_ends_is_not_asked_for_ever(buffer: Callable[..., Buffer]):
    chat = Says('{"facts": [{"from": [1], "text": "on and on', finish="length")
    row = buffer([str(n) for n in range(64)])
    assert LLMGenerator(chat, NoReplies()).generate([row]) == ["llm_bad_reply"]
    assert len(chat.asked) == 1 + 2 + 4 + 8 * 3


# --- the stage ---------------------------------------------------------------------------------


def outcome(rows: Sequence[Extracted]) -> list[object]:
    return [(r.user_id, r.messages, [(e.id, e.text, e.sources) for e in r.entries]) for r in rows]


def test_extraction_does_not_depend_on_the_batch(buffer: Callable[..., Buffer]):
    chat = Narrow(lines=3, fails_on="broken")
    rows = [
        buffer(["a", "b"], ["c", "d", "e"]),
        buffer(["broken", "f"], user="bob"),
        buffer(),
        buffer(["g"], user="eve", name="Eve"),
        buffer(["h", "broken", "i", "j"], user="eve"),
    ]
    stage = Extraction(LLMGenerator(chat, NoReplies()))
    together = stage(rows)
    assert outcome(together) == outcome([stage([row])[0] for row in rows])
    assert outcome(stage(rows[::-1])) == outcome(together[::-1])
    states = [[m.state for m in row.messages] for row in together]
    assert states[:2] == [["stored"] * 5, ["quarantined"] * 2]
    assert stage([]) == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    reply=st.one_of(
        st.text(max_size=30),
        st.lists(
            st.builds(
                fact,
                st.lists(st.integers(-1, 6), max_size=4),
                st.text(max_size=6),
                when=st.text("0123456789-", max_size=10),
            ),
            max_size=4,
        ),
    ),
    finish=st.sampled_from(["stop", "length"]),
)
def test_whatever_a_model_says_every_message_has_an_end(
    reply: object, finish: str, buffer: Callable[..., Buffer]
):
    row = buffer(["a", "b"], ["c"])
    chat = Says(reply if isinstance(reply, list) else str(reply), finish=finish)
    (found,) = Extraction(LLMGenerator(chat, NoReplies(), retries=1))([row])
    assert [m.id for m in found.messages] == [m.id for m in row.messages]
    assert {m.state for m in found.messages} <= {"stored", "no_facts", "quarantined"}
    used = {s.message_id for e in found.entries for s in e.sources}
    assert used == {m.id for m in found.messages if m.state == "stored"}
