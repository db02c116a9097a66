import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest

from lightmem_core.language import WordModel, words
from lightmem_core.long_term.ranking import UserIndex, stem
from lightmem_core.long_term.render import embedding_text, entry_line
from lightmem_core.types import Entry, Source

DAY = 86_400_000
MODEL = WordModel(("en",))


def vector(text: str) -> np.ndarray:
    """A unit vector with a direction of its own for every word."""
    total = np.ones(64, dtype=np.float32) / 100
    for word in words(text):
        total += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(64)
    return (total / np.linalg.norm(total)).astype(np.float32)


def entry(text: str, position: int = 0, session: str = "s1", speaker: str = "Ada", **kw) -> Entry:
    said_at = {"s1": 0, "s2": 60 * DAY}[session]
    place = (Source(session, position),)
    made = Entry(f"{session}.{position}", "ada", session, position, 0, speaker, text, "", said_at,
                 kw.get("event_at"), place, vector=vector(f"{speaker}: {text}"))  # fmt: skip
    return made


CHAT = [
    entry("We adopted a beagle.", 0),
    entry("What did you name the puppy?", 1, speaker="Bob"),
    entry("Snoopy.", 2),
    entry("The roof leaks again.", 3, speaker="Bob"),
    entry("Tickets to Lisbon are cheap.", 0, "s2"),
    entry("My sister paints landscapes.", 1, "s2"),
    entry("Winter tyres are expensive.", 2, "s2", speaker="Bob"),
]


def best(query: str, entries: list[Entry] = CHAT) -> list[str]:
    index = UserIndex(entries, MODEL)
    found = index.rank(query, vector(query))
    return [index.entries[i].text for i in found.best(len(entries))]


def test_the_entry_with_the_words_asked_for_is_first():
    assert best("Which tyres are expensive?")[0] == "Winter tyres are expensive."


def test_other_forms_of_a_word_are_found():
    query = "Who enjoys painting a landscape?"
    scores = UserIndex(CHAT, MODEL).rank(query, vector(query))
    assert CHAT[scores.bm25.argmax()].text == "My sister paints landscapes."


def test_many_threads_find_the_stems_that_one_finds():
    parts = ("run", "organ", "nation"), ("", "al", "ful"), ("izations", "ing", "ed")
    spoken = list(map("".join, product(*parts)))
    alone = [stem(word, "english") for word in spoken]
    often, before = 40, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = threads.map(lambda _: [stem(word, "english") for word in spoken], range(often))
            assert list(found) == [alone] * often
    finally:
        sys.setswitchinterval(before)


def test_a_short_answer_is_found_by_the_question_before_it():
    ranked = best("name of the puppy")
    assert ranked.index("Snoopy.") <= 2
    assert ranked.index("Snoopy.") < ranked.index("Tickets to Lisbon are cheap.")


def test_neighbours_in_another_session_do_not_count():
    scores = UserIndex(CHAT, MODEL).rank("roof", vector("roof"))
    assert scores.bm25[3] > scores.bm25[2] > scores.bm25[1] > 0
    assert not scores.bm25[4:].any()


def test_who_is_named_in_the_query_is_preferred():
    scores = UserIndex(CHAT, MODEL).rank("What did Bob say?", vector("What did Bob say?"))
    assert scores.speaker.tolist() == [0, 1, 0, 1, 0, 0, 1]


def test_the_day_of_an_event_is_found():
    entries = [*CHAT, entry("We married then.", 3, "s2", event_at=400 * DAY)]
    assert best("5 February 1971", entries)[0] == "We married then."


def test_the_order_of_the_entries_given_does_not_matter():
    assert best("puppy", CHAT) == best("puppy", CHAT[::-1])


@pytest.mark.parametrize("query", ["", "?!", "zzzz", "the of"])
def test_every_query_gives_finite_scores(query: str):
    scores = UserIndex(CHAT, MODEL).rank(query, vector(query))
    for part in (scores.total, scores.cosine, scores.window, scores.bm25, scores.speaker):
        assert part.shape == (len(CHAT),)
        assert np.isfinite(part).all()


def test_one_entry_and_none():
    assert best("beagle", CHAT[:1]) == ["We adopted a beagle."]
    assert best("beagle", []) == []


def test_text_without_spaces_is_found_by_a_part_of_it():
    entries = [*CHAT, entry("我昨天在里斯本买了房子", 3, "s2")]
    assert best("里斯本", entries)[0] == "我昨天在里斯本买了房子"


def test_an_entry_without_a_vector_is_refused():
    bare = Entry("e1", "ada", "s1", 0, 0, "Ada", "text", "", 0, None, ())
    with pytest.raises(ValueError, match="e1"):
        UserIndex([bare])


def test_the_line_shown_has_the_day_and_the_speaker_and_the_embedded_text_no_day():
    assert entry_line(CHAT[0]) == "1 January 1970 Ada: We adopted a beagle."
    assert embedding_text(CHAT[0]) == "Ada: We adopted a beagle."
