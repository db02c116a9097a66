import json
import subprocess
import sys
from datetime import UTC
from pathlib import Path

import numpy as np
import pytest

from lightmem_core.config import Config
from lightmem_core.encoders.hashing import HashEmbedder, WordTokenizer
from lightmem_core.errors import InputError, StoreError
from lightmem_core.long_term.apply import Phase, apply_decisions
from lightmem_core.long_term.store import MemoryStore, VectorModel
from lightmem_core.schema import to_table
from lightmem_core.types import Decision, Entry, Extracted, Message, Source, stable_id
from lightmem_pipelines.evaluation import evaluate, render_text
from lightmem_pipelines.evaluation.bm25 import BM25
from lightmem_pipelines.evaluation.questions import QuestionFile, Sample
from lightmem_pipelines.evaluation.rankings import (
    BEFORE_SLEEP,
    COSINE,
    ENTRIES,
    FUSED,
    SUMMED,
    WORDS,
    entry_rankings,
    message_rankings,
    reciprocal,
    with_window,
)
from lightmem_pipelines.evaluation.recall import (
    Item,
    discounted_gain,
    evidence_recall,
    fitting,
    means,
    session_recall,
)

EMBEDDER = HashEmbedder(64)
TURNS = {
    1: ["Ada|My violin came from Prague.", "Ben|I never learned to swim."],
    2: ["Ada|My violin came from Prague.", "Ben|The bakery opens on Monday.", "Ada|Lovely."],
}


def locomo(sample_id: str = "ada", **qa: object) -> dict:
    """A conversation of TURNS, with questions given as name=(category, evidence)."""
    conversation: dict = {"speaker_a": "Ada", "speaker_b": "Ben"}
    for number, turns in TURNS.items():
        conversation[f"session_{number}_date_time"] = f"1:56 pm on {number} May, 2023"
        conversation[f"session_{number}"] = [
            {"speaker": who, "dia_id": f"D{number}:{n}", "text": text}
            for n, (who, text) in enumerate((turn.split("|") for turn in turns), 1)
        ]
    asked = [
        {"question": name.replace("_", " "), "category": category, "evidence": evidence}
        for name, (category, evidence) in qa.items()  # pyright: ignore[reportGeneralTypeIssues]
    ]
    return {"sample_id": sample_id, "conversation": conversation, "qa": asked}


def longmemeval(question_id: str = "q1", role: str = "user") -> dict:
    return {
        "question_id": question_id,
        "question_type": "multi-session",
        "question": "How many plants?",
        "haystack_dates": ["2023/05/30 (Tue) 23:40", "2023/05/29 (Mon) 08:00"],
        "haystack_session_ids": ["answer_b", "other"],
        "haystack_sessions": [
            [
                {"role": "assistant", "content": "Hello.", "has_answer": False},
                {"role": role, "content": "I bought two ferns.", "has_answer": True},
            ],
            [{"role": "user", "content": "It rains."}],
        ],
    }


def read(folder: Path, dataset: str, *records: object) -> list[Sample]:
    return list(QuestionFile(dataset, written(folder, *records), UTC))


def written(folder: Path, *records: object) -> str:
    path = folder / "questions.json"
    path.write_text(json.dumps(records))
    return str(path)


def item(*sources: tuple[str, int], tokens: int = 10) -> Item:
    return Item(sources, tokens)


def test_evidence_is_split_and_what_names_no_message_is_ignored(tmp_path: Path):
    record = locomo(
        both=(1, ["D1:1; D2:2"]), spaced=(2, ["D1:2 D1:1", "D2:3"]), partly=(4, ["D", "D1:1"])
    )
    both, spaced, partly = read(tmp_path, "locomo", record)[0].questions
    assert both.gold == {("session_1", 0), ("session_2", 1)}
    assert spaced.gold == {("session_1", 0), ("session_1", 1), ("session_2", 2)}
    assert partly.gold == {("session_1", 0)}


def test_questions_without_evidence_are_counted_and_skipped(tmp_path: Path):
    record = locomo(none=(3, []), unknown=(3, ["D9:9"]), known=(3, ["D1:1"]))
    sample = read(tmp_path, "locomo", record)[0]
    assert [q.text for q in sample.questions] == ["known"]
    assert sample.skipped == {"no evidence": 2}


def test_categories_have_the_names_of_the_benchmark(tmp_path: Path):
    record = locomo(**{f"q{n}": (n, ["D1:1"]) for n in range(1, 6)})
    names = [q.category for q in read(tmp_path, "locomo", record)[0].questions]
    assert names == ["multi-hop", "temporal", "open-domain", "single-hop", "adversarial"]


def test_user_turns_with_the_answer_are_gold(tmp_path: Path):
    sample = read(tmp_path, "longmemeval", longmemeval())[0]
    assert [m.session_id for m in sample.messages] == ["other", "answer_b", "answer_b"]
    (question,) = sample.questions
    assert question.category == "multi-session"
    assert question.gold == {("answer_b", 1)}
    assert question.gold_sessions == {"answer_b"}


def test_abstentions_and_answers_of_the_assistant_alone_are_skipped(tmp_path: Path):
    records = [longmemeval("q1_abs"), longmemeval("q2", role="assistant")]
    samples = read(tmp_path, "longmemeval", *records)
    assert [s.questions for s in samples] == [(), ()]
    assert [dict(s.skipped) for s in samples] == [{"abstention": 1}, {"no evidence": 1}]


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no longmemeval file.*locomo"):
        read(tmp_path, "longmemeval", locomo())
    with pytest.raises(InputError, match="cannot read"):
        list(QuestionFile("locomo", str(tmp_path / "none.json"), UTC))
    with pytest.raises(InputError, match="no data set 'squad'"):
        QuestionFile("squad", "x.json", UTC)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path):
    path = Path(written(tmp_path, locomo(), locomo("ben")))
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match="bad_json"):
        list(QuestionFile("locomo", str(path), UTC))


def test_recall_counts_each_evidence_message_once():
    ranked = [item(("s", n)) for n in range(30)]
    ranked[7] = item(("s", 0), ("s", 7))
    row = evidence_recall(ranked, frozenset({("s", 0), ("s", 7), ("s", 15), ("gone", 0)}))
    assert (row["R@5"], row["R@10"], row["R@20"], row["R@60"]) == (0.25, 0.5, 0.75, 0.75)


def test_a_budget_ends_at_the_first_item_that_does_not_fit():
    ranked = [item(tokens=n) for n in (400, 600, 1, 999)]
    counts = {budget: fitting(ranked, budget) for budget in (399, 400, 999, 1_000, 2_000)}
    assert counts == {399: 0, 400: 1, 999: 1, 1_000: 2, 2_000: 4}
    assert fitting([item(tokens=1_001), item(tokens=1)], 1_000) == 0


def test_recall_within_budgets():
    ranked = [item(("s", n), tokens=500) for n in range(9)]
    row = evidence_recall(ranked, frozenset({("s", 1), ("s", 3), ("s", 7), ("s", 8)}))
    assert (row["1k"], row["2k"], row["4k"]) == (0.25, 0.5, 0.75)


def test_nothing_ranked_finds_nothing():
    assert set(evidence_recall([], frozenset({("s", 0)})).values()) == {0}


def test_sessions_count_where_they_are_reached_first():
    ranked = [item((name, n)) for n, name in enumerate("xaxaaybzzcd")]
    row = session_recall(ranked, frozenset("ac"))  # sessions: x a y b z c d
    assert (row["recall_all@5"], row["recall_all@10"]) == (0, 1)
    assert row["ndcg_any@5"] == pytest.approx(1 / 2)
    assert row["ndcg_any@10"] == pytest.approx((1 + 1 / np.log2(6)) / 2)


def test_the_first_two_ranks_weigh_the_same():
    assert discounted_gain([True, False]) == discounted_gain([False, True]) == 1
    assert discounted_gain([True, True, True]) == pytest.approx(2 + 1 / np.log2(3))


def test_means():
    assert means([{"a": 1, "b": 0}, {"a": 0, "b": 0}]) == {"a": 0.5, "b": 0}
    assert means([]) == {}


def test_bm25_prefers_rare_words_and_ignores_stop_words():
    scores = BM25(["the cat and the dog", "a cat", "my dog Rex", "of the"])("the dog and Rex")
    assert scores.argmax() == 2
    assert scores[[1, 3]].tolist() == [0, 0]
    assert BM25(["of the", ""])("of").tolist() == [0, 0]


def test_fusion_adds_reciprocal_ranks():
    assert reciprocal(np.array([0.1, 0.9, 0.5])) == pytest.approx([1 / 63, 1 / 61, 1 / 62])


def test_a_window_adds_the_neighbours():
    assert with_window(np.array([0.0, 3.0, 0.0, 0.0])) == pytest.approx([0.6, 3.6, 0.6, 0])
    assert with_window(np.array([5.0])) == pytest.approx([8])


def test_every_ranking_shows_every_message_once(tmp_path: Path):
    messages = read(tmp_path, "locomo", locomo())[0].messages
    vectors = EMBEDDER.encode([m.content for m in messages])
    rankings = message_rankings(messages, vectors, WordTokenizer())
    assert set(rankings) == {COSINE, WORDS, FUSED, SUMMED}
    query = "Who opens the bakery?"
    for ranking in rankings.values():
        ranked = ranking(query, EMBEDDER.encode([query])[0])
        assert sorted(i.sources[0] for i in ranked) == [
            (m.session_id, m.position) for m in messages
        ]
        assert ranked[0].sources == (("session_2", 1),)
        assert ranked[0].tokens == len("2 May 2023 Ben: The bakery opens on Monday.".split())


def test_before_sleep_is_shown_only_if_it_hid_an_entry(tmp_path: Path):
    entries = [entry_of(m) for m in read(tmp_path, "locomo", locomo())[0].messages]
    assert set(entry_rankings(entries, WordTokenizer())) == {ENTRIES}
    after = slept(entries)
    rankings = entry_rankings(after, WordTokenizer())
    assert [len(rankings[name].items) for name in (ENTRIES, BEFORE_SLEEP)] == [4, 5]
    heir = (("session_2", 0), ("session_1", 0))
    assert heir in {i.sources for i in rankings[ENTRIES].items}
    assert heir not in {i.sources for i in rankings[BEFORE_SLEEP].items}


def test_the_report_of_a_small_store(tmp_path: Path):
    record = locomo(
        Where_did_the_violin_come_from=(1, ["D1:1", "D2:1"]),
        When_does_the_bakery_open=(4, ["D2:2"]),
        Nothing=(4, []),
    )
    path = written(tmp_path, record)
    store = filled(tmp_path, path)
    report = evaluate(store, "locomo", path)
    assert (report.users, report.questions, report.skipped) == (1, 2, {"no evidence": 1})
    assert (report.messages, report.entries, report.covered) == (5, 5, 1)
    assert set(report.rankings) == {ENTRIES, COSINE, WORDS, FUSED, SUMMED}
    for figures in report.rankings.values():
        assert figures.overall["R@5"] == 1
        assert set(figures.by_category) == {"multi-hop", "single-hop"}
    assert json.loads(json.dumps(report.as_dict()))["categories"] == report.categories
    lines = render_text(report).splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(ENTRIES)] == ["100.0", "4k"]
    for name in (COSINE, WORDS, FUSED):
        assert [line.split()[-1] for line in lines if line.startswith(name)] == ["100.0", "4k"]


def test_merged_entries_keep_their_recall(tmp_path: Path):
    path = written(tmp_path, locomo(Where_from=(1, ["D1:1", "D2:1"])))
    config = filled(tmp_path, path)
    shard = MemoryStore.open(config.memory.store).shards[0]
    after = slept(shard.entries_of(["ada"]))
    assert shard.update(to_table([e for e in after if e.gen], Entry)) == 0
    report = evaluate(config, "locomo", path)
    assert report.entries == 4
    assert report.rankings[ENTRIES].overall["R@5"] == 1
    assert report.rankings[BEFORE_SLEEP].overall["R@5"] == 1
    assert "before sleep" in render_text(report)


def test_longmemeval_has_session_figures(tmp_path: Path):
    path = written(tmp_path, longmemeval(), longmemeval("q2_abs"))
    report = evaluate(filled(tmp_path, path, "longmemeval"), "longmemeval", path)
    assert (report.questions, report.skipped) == (1, {"abstention": 1})
    assert report.rankings[COSINE].overall["recall_all@5"] == 1
    assert "ndcg_any@10" in render_text(report)


def test_users_who_are_not_stored_are_named(tmp_path: Path):
    config = filled(tmp_path, written(tmp_path, locomo()))
    asked = [locomo(name, q=(1, ["D1:1"])) for name in ("ada", "ben", "cy")]
    path = written(tmp_path, *asked)
    with pytest.raises(StoreError, match=rf"\(ben, cy\).*lightmem backfill {path}` first"):
        evaluate(config, "locomo", path)


def test_a_user_without_entries_finds_nothing(tmp_path: Path):
    path = written(tmp_path, locomo(Where_from=(1, ["D1:1", "D2:1"])))
    report = evaluate(filled(tmp_path, path, entries=False), "locomo", path)
    assert (report.entries, report.covered, report.tokens_per_entry) == (0, 0, 0)
    assert report.rankings[ENTRIES].overall["4k"] == 0
    assert report.rankings[COSINE].overall["4k"] == 1


def test_a_file_without_questions_is_refused(tmp_path: Path):
    path = written(tmp_path, locomo())
    with pytest.raises(InputError, match="no question"):
        evaluate(filled(tmp_path, path), "locomo", path)


def test_the_evaluation_needs_no_ray():
    code = "import sys, lightmem_pipelines.evaluation; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def entry_of(message: Message) -> Entry:
    """The message as it is, as an entry."""
    key = stable_id(message.session_id, message.position)
    place = (Source(message.session_id, message.position),)
    vector = EMBEDDER.encode([message.content])[0]
    return Entry(key, message.user_id, message.session_id, message.position, 0, message.speaker,
                 message.content, "", message.said_at, None, place, vector=vector)  # fmt: skip


def slept(entries: list[Entry]) -> list[Entry]:
    """The entries after the first statement was merged into the third, which repeats it."""
    by_order = sorted(entries, key=lambda e: e.order)
    first, heir = by_order[0], by_order[2]
    decision = Decision("ada", first.id, "merge", heir.id, 1.0, "same words")
    changed = apply_decisions(by_order, [decision], Phase("sleep-1")).changed
    by_id = {e.id: e for e in changed}
    return [by_id.get(e.id, e) for e in by_order]


def filled(folder: Path, path: str, dataset: str = "locomo", entries: bool = True) -> Config:
    """A store with the messages of a file, each of them an entry, and its configuration."""
    memory = {
        "tokenizer": {"use": "words"},
        "embedder": {"use": "hash", "options": {"dim": EMBEDDER.dim}},
        "store": {"uri": str(folder / "store")},
    }
    config = Config.model_validate({"memory": memory})
    store = MemoryStore.create(config.memory.store, VectorModel.of(EMBEDDER))
    for sample in QuestionFile(dataset, path, UTC):
        made = tuple(map(entry_of, sample.messages)) if entries else ()
        rows = [Extracted(sample.user_id, sample.messages, made)]
        store.shard_for(sample.user_id).insert(to_table(rows, Extracted), "run-1")
    return config
