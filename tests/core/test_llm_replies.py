"""What a model's reply says, however it is written."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightmem_core.llm.json_replies import Found, find, problems
from lightmem_core.short_term.summarize import schema

FACTS = [
    {"from": [1], "text": "Ann has a cat.", "when": "2023-05-07", "topic": "pets"},
    {"from": [2, 3], "text": 'Bob said "{no}".', "when": "", "topic": "talk"},
]
WHOLE = json.dumps({"facts": FACTS})


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f'Sure {{as you asked}}:\n```json\n{WHOLE}\n```\nHope [this] helps, says "me".',
        f'<think>{{"facts": [{{"from": [1]</think>{WHOLE}',
        f'{{"facts": []}} No, wait: {WHOLE}',
        WHOLE.replace("}, {", "},\n\n  {"),
        WHOLE[:-1] + ",]}",
        WHOLE.replace("]}", "],}", 1),
        WHOLE[:-1],
        WHOLE[:-2],
        WHOLE.replace(' "text"', " text"),
    ],
)
def test_json_is_found_in_what_stands_around_it_and_repaired(text: str):
    assert find(text, "facts") == Found({"facts": FACTS})


CUT_FACTS = json.dumps({"facts": FACTS})[:-30]


@pytest.mark.parametrize(
    ("text", "cut", "expected"),
    [
        (
            f'Were there none: {{"facts": []}}. But: {WHOLE[:-2]},]}}',
            False,
            Found({"facts": FACTS}),
        ),
        (f'{{"facts": []}} No: {WHOLE[:20]}', True, None),
        (f'{{"facts": []}} No: {CUT_FACTS}', True, Found({"facts": FACTS[:1]}, whole=False)),
        (f'{{"facts": []}} No: {CUT_FACTS}', False, Found({"facts": FACTS[:1]}, whole=False)),
        (f"{{'facts': [}} No: {WHOLE[:-2]},]}}", False, Found({"facts": FACTS})),
        (
            '<think>If there were none: {"facts": []}. Message 1 says',
            True,
            Found({"facts": []}, whole=False),
        ),
        (f"```json\n{WHOLE}\n``", True, Found({"facts": FACTS})),
        (f'{WHOLE} These are all "facts": two.', False, Found({"facts": FACTS})),
    ],
)
def test_a_draft_never_stands_for_the_answer_that_follows_it(
    text: str, cut: bool, expected: Found | None
):
    assert find(text, "facts", cut) == expected


def test_raw_control_characters_may_stand_in_strings():
    found = find('{"facts": [{"text": "one\ntwo\x00\x1f"}]}', "facts")
    assert found == Found({"facts": [{"text": "one\ntwo\x00\x1f"}]})


@pytest.mark.parametrize("text", ["", "No.", "[1, 2]", '{"fact": []}', '{"facts": ', "{" * 5_000])
def test_a_reply_without_the_object_has_none(text: str):
    assert find(text, "facts") is None


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, len(WHOLE)))
def test_a_reply_that_was_cut_gives_only_what_was_complete(cut: int):
    found = find(WHOLE[:cut], "facts", cut=True)
    if found is None:
        assert cut < len(json.dumps({"facts": FACTS[:1]})) - len("]}")
    else:
        facts = found.value["facts"]
        assert facts == FACTS[: len(facts)]
        assert found.whole == (cut == len(WHOLE))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from('{}[]":,\\ a1\n'), max_size=60))
def test_nothing_that_a_model_writes_is_too_much(text: str):
    found = find('{"facts": [' + text, "facts")
    assert found is None or "facts" in found.value


def test_what_does_not_fit_a_schema_is_named_with_its_place():
    wrong = {"facts": [FACTS[0], FACTS[1] | {"from": [1, 9]}, FACTS[0] | {"text": "x" * 999}]}
    found = problems(wrong, schema(3))
    assert [(p.path, len(p.words) <= 200) for p in found] == [
        (("facts", 1, "from", 1), True),
        (("facts", 2, "text"), True),
    ]
    assert problems({"facts": FACTS}, schema(3)) == []
