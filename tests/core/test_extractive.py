import pytest

from lightmem_core.sentences import split
from lightmem_core.short_term.extractive import ExtractiveGenerator
from lightmem_core.types import Buffer, Fact, Message, Segment

AT = 1_683_554_160_000
ANY_LANGUAGE = ExtractiveGenerator()
GENERATOR = ExtractiveGenerator(languages=("en", "de"))


def segment(*contents: str, session: str = "s1", role: str = "user") -> Segment:
    names = ("Caroline", "Melanie")
    return Segment(
        tuple(
            Message("ada", session, i, role, content, AT, name=names[i % 2])
            for i, content in enumerate(contents)
        )
    )


def facts(*segments: Segment, generator: ExtractiveGenerator = GENERATOR) -> list[Fact]:
    (found,) = generator.generate([Buffer("ada", segments)])
    assert not isinstance(found, str)
    return found


MOVE = segment("Hey Melanie! I moved to Lisbon yesterday.", "Wow, that's great!", session="s1")
DOGS = segment("We adopted two beagles.", "I'm allergic to dogs, sadly.", session="s2")


def test_filler_gives_nothing():
    filler = segment(
        "Hey Melanie! How have you been?", "Thanks, Caroline!", "That's great.", "👍", ""
    )
    assert facts(filler) == []


def test_a_fact_is_verbatim_and_names_its_message():
    assert [(f.text, f.sources) for f in facts(MOVE, DOGS)] == [
        ("I moved to Lisbon yesterday.", (0,)),
        ("We adopted two beagles.", (2,)),
        ("I'm allergic to dogs, sadly.", (3,)),
    ]


def test_relative_days_are_resolved():
    assert facts(MOVE)[0].event_at == 1_683_417_600_000  # 7 May 2023
    assert facts(DOGS)[0].event_at is None


@pytest.mark.parametrize("text", ["I do not eat mushrooms anymore.", "We have 3.", "Flat 7b."])
def test_negations_and_numbers_survive(text: str):
    assert [f.text for f in facts(segment(text))] == [text]


@pytest.mark.parametrize(
    "text",
    [
        *("I have a son.", "I'm pregnant!", "I got fired.", "I am married.", "My name is John."),
        *("I don't drink.", "I work at night.", "I can't swim.", "I'm vegan.", "My mum died."),
        *("Ich habe einen Sohn.", "Ich bin schwanger.", "Tengo un hijo.", "Soy vegetariana."),
        *("J'ai un fils.", "Ho un figlio.", "Tenho um filho.", "Ik heb een zoon."),
    ],
)
def test_what_someone_says_of_themselves_is_a_fact_however_short(text: str):
    assert [f.text for f in facts(segment(text), generator=ANY_LANGUAGE)] == [text]


@pytest.mark.parametrize(
    "text",
    [
        *("sounds good, see you soon!", "Take care and stay awesome!", "Good luck with it all!"),
        *("Wow, that's fantastic news, so proud of you!", "I'm so happy for you!", "I can't wait!"),
        *("I hope you're well.", "I totally agree.", "I see what you mean.", "I'll let you know."),
        *(
            "Absolutely, I'm here for you.",
            "Das klingt super, bis bald!",
            "Ich freue mich für dich!",
        ),
        *("¡Qué bien, me alegro mucho!", "C'est génial, bravo!"),
    ],
)
def test_praise_and_sympathy_are_no_facts(text: str):
    assert facts(segment(text), generator=ANY_LANGUAGE) == []


def test_a_question_about_oneself_needs_as_much_to_say_as_any_sentence():
    found = facts(segment("Do I work at night?", "Did we adopt the beagle?"))
    assert [f.sources for f in found] == [(1,)]


def test_the_batch_does_not_change_the_facts():
    buffers = [Buffer("ada", (MOVE,)), Buffer("ada", ()), Buffer("bob", (DOGS, MOVE))]
    alone = [GENERATOR.generate([buffer])[0] for buffer in buffers]
    assert GENERATOR.generate(buffers) == alone
    assert GENERATOR.generate([]) == []


def test_where_buffers_are_cut_does_not_change_the_facts():
    together, apart = facts(MOVE, DOGS), [*facts(MOVE), *facts(DOGS)]
    assert [(f.text, f.topic, f.event_at) for f in together] == [
        (f.text, f.topic, f.event_at) for f in apart
    ]


def test_only_the_roles_asked_for_are_read():
    generator = ExtractiveGenerator(roles=["user"], languages=("en",))
    told = segment("Penguins cannot fly.", role="assistant")
    assert facts(told, DOGS, generator=generator)[0].sources == (1,)


def test_a_long_message_becomes_several_facts_and_loses_nothing():
    sentences = [f"Chapter {n} explains photosynthesis in desert plants." for n in range(20)]
    found = [f.text for f in facts(segment(" ".join(sentences)))]
    assert " ".join(found) == " ".join(sentences)
    assert max(map(len, found)) <= GENERATOR.max_chars


def test_text_without_stops_is_cut():
    found = facts(segment("turbine blade " * 100))
    assert max(len(f.text) for f in found) <= GENERATOR.max_chars


def test_topics_are_the_informative_words_said_most():
    chat = segment("My beagle barks.", "Beagle owners cope, Caroline.", "The beagle and the cat")
    assert facts(chat)[0].topic.split(", ")[0] == "beagle"
    assert "caroline" not in facts(chat)[0].topic


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("I paid 3.50 at https://a.b/c?d=e. Fine!", ["I paid 3.50 at https://a.b/c?d=e.", "Fine!"]),
        (
            "Dr. Smith left at 5 p.m. on Monday. Good.",
            ["Dr. Smith left at 5 p.m. on Monday.", "Good."],
        ),
        ("Am 3. Mai bzw. im Juni. Gut.", ["Am 3. Mai bzw. im Juni.", "Gut."]),
        ("今日は晴れです。明日は？雨です。", ["今日は晴れです。", "明日は？", "雨です。"]),
        ("Great 😊 See you! 🎉 Bye", ["Great 😊", "See you!", "🎉", "Bye"]),
        ("one\ntwo\r\n\r\n three", ["one", "two", "three"]),
        ('He said "No." Then left.', ['He said "No."', "Then left."]),
        (" ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]):
    assert split(text) == sentences
