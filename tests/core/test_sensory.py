import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.encoders.hashing import WordTokenizer
from lightmem_core.encoders.minilm import MiniLMTokenizer
from lightmem_core.errors import ComponentError
from lightmem_core.protocols import Compressor
from lightmem_core.sensory.compress import Compression, NoCompressor
from lightmem_core.sensory.segment import FixedSegmenter, Segmentation
from lightmem_core.sensory.self_information import SelfInformationCompressor
from lightmem_core.sensory.valley import ValleySegmenter, valley_depth, window_similarity
from lightmem_core.types import History, Message

WORDS = WordTokenizer()
LANGUAGES = ("en", "de", "es")
PLAIN = (
    "we went for a walk by the river in the evening and then we had some soup "
    "with bread while the children played a game of cards on the floor"
)
GERMAN = "wir sind am Abend am Fluss spazieren gegangen und haben danach eine warme Suppe gegessen"
SPANISH = "por la tarde fuimos a pasear junto al río y luego cenamos una sopa caliente en casa"


def compressor(rate: float, tokenizer: object = WORDS) -> SelfInformationCompressor:
    return SelfInformationCompressor(tokenizer, rate, LANGUAGES)  # pyright: ignore[reportArgumentType]


def compress(text: str, rate: float = 0.05) -> str:
    return compressor(rate).compress([text])[0]


# --- compression -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("text", [PLAIN, GERMAN.lower(), SPANISH])
def test_the_share_kept_is_the_rate(text: str, rate: float):
    kept = compress(text, rate).split()
    assert len(kept) == math.ceil(rate * len(text.split()))


@pytest.mark.models
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_the_share_is_counted_in_the_tokens_of_the_tokenizer(rate: float):
    tokenizer = MiniLMTokenizer()
    text = f"{PLAIN} unfathomably counterintuitive misapprehensions notwithstanding"
    (kept,) = compressor(rate, tokenizer).compress([text])
    (before, after), longest = tokenizer.count([text, kept]), max(tokenizer.count(text.split()))
    assert rate * before - longest < after <= math.ceil(rate * before)
    assert len(kept.split()) != math.ceil(rate * len(text.split()))


@pytest.mark.parametrize("text", [PLAIN, GERMAN, SPANISH])
def test_words_stay_in_their_order(text: str, in_order: Callable[..., bool]):
    kept = compress(text, 0.5).split()
    assert in_order(kept, text.split())
    assert len(kept) < len(text.split())


def test_the_rarest_words_are_those_that_stay():
    text = "we saw that the archaeologists had found a mosaic and that it was good"
    assert compress(text, 2 / 14) == "archaeologists mosaic"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("and then we all went over to see Caroline at the house", {"Caroline"}),
        ("Caroline and i went over there to see what it was all about", {"Caroline"}),
        ("it will be there at 7pm in room 12b on the 3rd for 4.50", {"7pm", "12b", "3rd", "4.50"}),
        ("i do not think that she will be there and he won't come", {"not", "won't"}),
        ("i can’t say that there is nothing in it for us to see", {"can’t", "nothing"}),
        ("you can write to me at ada@example.org or at https://example.org/a", {"ada@example.org",
         "https://example.org/a"}),
        ('then we saw "the wind and the sun" with all of them', {'"the', "wind", "and", 'sun"'}),
        ("then we saw “the good, the bad and the ugly” with them", {"good,", "bad", "ugly”"}),
        ("then we saw 'it' and ‘up’ again and it was up to us", {"'it'", "‘up’"}),
        ("we saw 'don't look up' with the kids' friends", {"'don't", "look", "up'"}),
        ("We went there. John was there with us. London is nice.", {"John", "London"}),
        ("wir sind dann nach Berlin gefahren und waren in Hamburg", {"Berlin", "Hamburg"}),
        ("Peter fährt nach Berlin und besichtigt das Museum", {"Peter", "Berlin"}),
        ("wir haben dann „das boot“ noch einmal gesehen und gegessen", {"„das", "boot“"}),
        ("ich habe das nicht gesehen und sie hat keine zeit für uns", {"nicht", "keine"}),
        ("nunca he visto nada de eso en la casa de mi madre", {"nunca", "nada"}),
    ],
)  # fmt: skip
def test_names_numbers_negations_titles_and_addresses_always_stay(text: str, kept: set[str]):
    assert kept <= set(compress(text).split())


def test_apostrophes_are_no_quotes_and_what_is_quoted_stays_only_there():
    assert "friends" not in compress("the kids' friends' and that they were at the park")
    assert compress("we saw “it” and then it was time for us", 0.1) == "“it”"


def test_german_nouns_behind_an_article_may_go():
    assert compress("wir haben das Haus und den Tag mit Anna gesehen", 0.1) == "Anna"


@pytest.mark.parametrize(
    "text", ["👍", "👍👍👍", "ok", "我昨天搬到了里斯本。", "昨日は雨だった", "!?", "   ", "the"]
)
def test_a_text_of_one_piece_stays_as_it_is(text: str):
    assert compress(text, 0.01) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60), rate=st.floats(0.01, 1))
def test_no_text_becomes_empty_and_no_word_is_invented(
    text: str, rate: float, in_order: Callable[..., bool]
):
    kept = compress(text, rate)
    assert bool(kept.strip()) == bool(text.strip())
    assert in_order(kept.split(), text.split())


def test_rate_one_keeps_every_word():
    assert compress(f"  {PLAIN}\nand more ", 1) == f"{PLAIN} and more"


@pytest.mark.parametrize("rate", [0, -0.1, 1.01])
def test_a_rate_outside_its_range_is_refused(rate: float):
    with pytest.raises(ValueError, match="rate must be above 0 and at most 1"):
        compressor(rate)


def test_a_message_keeps_its_text_and_gets_both_counts(message: Callable[..., Message]):
    (found,) = Compression(compressor(0.5), WORDS)([History("ada", (message(PLAIN),))])
    (filled,) = found.messages
    assert filled.content == PLAIN
    assert (filled.content_tokens, filled.compressed_tokens) == (30, 15)
    assert len(filled.compressed.split()) == 15


def test_compression_does_not_depend_on_the_batch(message: Callable[..., Message]):
    rows = [
        History("ada", (message(PLAIN, 0), message(GERMAN, 1)), duplicates=2),
        History("bob", ()),
        History("eve", (message(SPANISH, user_id="eve"),)),
    ]
    stage = Compression(compressor(0.5), WORDS)
    assert stage(rows) == [stage([row])[0] for row in rows]
    assert [row.duplicates for row in stage(rows)] == [2, 0, 0]
    assert stage([]) == []


def test_no_compressor_changes_nothing(message: Callable[..., Message]):
    (found,) = Compression(NoCompressor(), WORDS)([History("ada", (message(PLAIN),))])
    assert found.messages[0].compressed == PLAIN
    assert found.messages[0].compressed_tokens == found.messages[0].content_tokens == 30


class Blanks:
    """A compressor that finds nothing worth keeping, as LLMLingua-2 does on JSON."""

    def compress(self, texts: Sequence[str]) -> list[str]:
        return [" " for _ in texts]


class Short:
    def compress(self, texts: Sequence[str]) -> list[str]:
        return list(texts)[1:]


def test_a_compressor_that_gives_nothing_leaves_the_original(message: Callable[..., Message]):
    (found,) = Compression(Blanks(), WORDS)([History("ada", (message('{"a": 1}'),))])
    assert found.messages[0].compressed == '{"a": 1}'
    assert found.messages[0].compressed_tokens == 2


def test_a_compressor_that_loses_a_text_is_named(message: Callable[..., Message]):
    broken: Compressor = Short()
    with pytest.raises(ComponentError, match=r"Short.compress returned 0 texts for 1"):
        Compression(broken, WORDS)([History("ada", (message(),))])


# --- segmentation ------------------------------------------------------------------------------


@pytest.fixture
def histories(message: Callable[..., Message]) -> list[History]:
    def history(user: str, *lengths: int) -> History:
        return History(
            user,
            tuple(
                message(f"{session}.{i}", i, f"s{session}", user_id=user)
                for session, length in enumerate(lengths)
                for i in range(length)
            ),
            duplicates=len(lengths),
        )

    return [history("ada", 7, 1, 4), history("bob"), history("eve", 3)]


def test_segments_lose_and_reorder_nothing(histories: list[History]):
    for row, cut in zip(histories, Segmentation(FixedSegmenter(3))(histories), strict=True):
        found = [m.id for segment in cut.segments for m in segment.messages]
        assert found == [m.id for m in row.messages]
        assert (cut.user_id, cut.duplicates) == (row.user_id, row.duplicates)


def test_a_segment_never_spans_sessions(histories: list[History]):
    cut = Segmentation(FixedSegmenter(100))(histories)[0]
    assert [{m.session_id for m in s.messages} for s in cut.segments] == [{"s0"}, {"s1"}, {"s2"}]


def test_the_fixed_segmenter_cuts_every_size_messages(histories: list[History]):
    cut = Segmentation(FixedSegmenter(3))(histories)[0]
    assert [len(s.messages) for s in cut.segments] == [3, 3, 1, 1, 3, 1]


def test_segmentation_does_not_depend_on_the_batch(histories: list[History]):
    stage = Segmentation(FixedSegmenter(2))
    assert stage(histories) == [stage([row])[0] for row in histories]
    assert stage([]) == []


def test_segment_ids_are_the_same_on_replay_and_differ_otherwise(histories: list[History]):
    first, again = (Segmentation(FixedSegmenter(3))(histories) for _ in range(2))
    ids = [s.messages[0].segment_id for row in first for s in row.segments]
    assert ids == [s.messages[0].segment_id for row in again for s in row.segments]
    assert len(set(ids)) == len(ids) == 7
    for segment in first[0].segments:
        assert len({m.segment_id for m in segment.messages}) == 1


# --- valleys -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "depth"),
    [
        ([], []),
        ([1], [0]),
        ([1, 0.9, 0.2, 0.8, 0.7], [0, 0, 1.3, 0, 0.1]),  # .9 + .8 - 2 x .2; .8 - .7
        ([1, 0.2, 0.6, 0.9], [0, 0.7, 0, 0]),  # the 1 of the first message is no peak
        ([1, 0.5, 0.6, 0.1], [0, 0.1, 0, 0.5]),
        ([1, 0.5, 0.5, 0.5], [0, 0, 0, 0]),
    ],
)
def test_the_depth_of_a_valley_is_the_climb_on_both_sides(curve: list[float], depth: list[float]):
    np.testing.assert_allclose(valley_depth(np.array(curve, float)), depth, atol=1e-12)


def test_window_similarity_compares_the_means_before_and_after():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    half = 1 / math.sqrt(2)
    np.testing.assert_allclose(window_similarity(vectors, 1), [1, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(window_similarity(vectors, 2), [1, half, 0, half], atol=1e-6)
    # At k = 3 all before, (2, 1), against (0, 1): a window reaches no further than the session.
    found = window_similarity(vectors, 10)
    np.testing.assert_allclose(found, [1, 1 / math.sqrt(5), 0, 1 / math.sqrt(5)], atol=1e-6)


COOKING = (
    "I cooked a risotto with mushrooms and parmesan last night.",
    "Did you use white wine in the risotto?",
    "Yes, a glass of white wine and a lot of butter and onions.",
    "Butter makes every risotto better. Which rice did you cook?",
    "Arborio rice, stirred with hot broth until it was creamy.",
    "I want to cook mushroom risotto with that broth, too.",
)
ENGINE = (
    "My car failed its inspection because of the brakes.",
    "Did the mechanic replace the brake pads of your car?",
    "The mechanic says the brake discs and the engine oil need replacing.",
    "How many miles has the engine of your car run?",
    "The engine has run ninety thousand miles, the gearbox too.",
    "Then ask the mechanic to check the gearbox and the clutch of the car.",
)


@pytest.fixture(scope="module")
def valley() -> ValleySegmenter:
    return ValleySegmenter()


@pytest.fixture
def talk(message: Callable[..., Message]) -> Callable[..., tuple[Message, ...]]:
    def make(*contents: str, session: str = "s1") -> tuple[Message, ...]:
        names = ("Ada", "Bob")
        return tuple(
            message(text, i, session, name=names[i % 2]) for i, text in enumerate(contents)
        )

    return make


@pytest.mark.models
@pytest.mark.parametrize(("first", "second"), [(COOKING, ENGINE), (ENGINE, COOKING)])
def test_two_topics_are_cut_apart_where_the_second_starts(
    valley: ValleySegmenter, talk: Callable[..., tuple[Message, ...]],
    first: tuple[str, ...], second: tuple[str, ...],
):  # fmt: skip
    (cuts,) = valley.cut([talk(*first, *second)])
    assert {5, 6, 7} & set(cuts) == {6}


@pytest.mark.models
def test_valleys_do_not_depend_on_the_batch(
    valley: ValleySegmenter, talk: Callable[..., tuple[Message, ...]]
):
    sessions = [
        talk(*COOKING, *ENGINE), talk("Hello!"), talk(*ENGINE, *COOKING, *ENGINE), talk("A", "B"),
        talk(*("word " * 110 for _ in range(6))),
    ]  # fmt: skip
    assert valley.cut(sessions) == [valley.cut([session])[0] for session in sessions]


@pytest.mark.models
def test_a_session_of_one_message_is_not_cut(
    valley: ValleySegmenter, talk: Callable[..., tuple[Message, ...]]
):
    assert valley.cut([talk("Hello!")]) == [[]]
    assert valley.cut([]) == []
    assert Segmentation(valley)([History("ada", ())])[0].segments == ()


@pytest.mark.models
def test_valleys_lose_and_reorder_nothing(
    valley: ValleySegmenter, talk: Callable[..., tuple[Message, ...]]
):
    messages = (*talk(*COOKING, *ENGINE), *talk(*ENGINE, session="s2"))
    (cut,) = Segmentation(valley)([History("ada", messages)])
    found = [m.id for segment in cut.segments for m in segment.messages]
    assert found == [m.id for m in messages]
    assert [s.messages[0].session_id for s in cut.segments][-1] == "s2"
    assert [len(s.messages) for s in cut.segments][:2] == [6, 6]
