"""What mem0's self-hosted server documents of its requests and answers, on ours."""

from collections.abc import Sequence

import pytest

from lightmem_core.types import Buffer, Fact

KEYS = {
    *("id", "memory", "user_id", "agent_id", "run_id", "hash", "expiration_date"),
    *("metadata", "created_at", "updated_at"),
}
PORTO = "I moved to Porto in May"
PASTA = "I like pasta with pesto"


@pytest.fixture(scope="module")
def server(any_server):
    return any_server


def test_messages_are_remembered_and_found_before_and_after_their_extraction(server):
    body = {"messages": [{"role": "user", "content": PORTO}], "user_id": "m-add"}
    (added,) = server.done("POST", "/memories", body)["results"]
    assert (added["memory"], added["event"]) == (PORTO, "ADD")
    search = {"query": "who moved to Porto?", "user_id": "m-add"}
    (waiting,) = server.done("POST", "/search", search)["results"]
    assert (waiting["id"], waiting["state"]) == (added["id"], "waiting")
    assert server.done("GET", f"/memories/{added['id']}")["memory"] == PORTO
    assert server.done("POST", "/users/m-add/flush") == {"entries": 1}
    (stored,) = server.done("POST", "/search", search)["results"]
    assert stored["state"] == "stored"
    assert "Porto" in stored["memory"]
    assert [source["message_id"] for source in stored["sources"]] == [added["id"]]


def test_the_id_that_adding_gives_stands_for_the_memory_once_it_is_extracted(server):
    (added,) = server.say("m-id", PORTO, flush=False)
    path = f"/memories/{added['id']}"
    server.done("POST", "/users/m-id/flush")
    memory = server.done("GET", path)
    assert (memory["state"], memory["id"] == added["id"]) == ("stored", False)
    assert [source["message_id"] for source in memory["sources"]] == [added["id"]]
    changed = server.done("PUT", path, {"text": "I moved to Faro in May"})["memory"]
    assert (changed["id"], changed["memory"]) == (memory["id"], "I moved to Faro in May")
    assert server.done("DELETE", path) == {"message": "Memory deleted successfully"}
    events = server.done("GET", f"{path}/history")
    assert [event["event"] for event in events] == ["ADD", "UPDATE", "DELETE"]
    assert server.done("GET", path)["state"] == "deleted"
    assert server.call("DELETE", path).status == 404
    other = server.make_key(user="m-id-other")
    for method, body in (("GET", None), ("PUT", {"text": "x"}), ("DELETE", None)):
        assert server.call(method, path, body, key=other).status == 404


class Halves:
    """Two facts of each message, and none of one that it cannot read."""

    name = "halves"

    def generate(self, buffers: Sequence[Buffer]) -> list[list[Fact] | str]:
        return [self._facts(buffer) for buffer in buffers]

    def _facts(self, buffer: Buffer) -> list[Fact] | str:
        if any("unreadable" in message.content for message in buffer.messages):
            return "bad reply"
        parts = [message.content.split(" and ") for message in buffer.messages]
        return [Fact(text, (at,)) for at, texts in enumerate(parts) for text in texts]


@pytest.fixture(scope="module")
def halving(start):
    with start(generator=f"{__name__}:Halves", limits={"waiting": 3}) as running:
        yield running


def test_the_id_of_a_message_of_which_several_memories_came(halving):
    (added,) = halving.say("m-two", "I moved to Porto and I like pasta", flush=False)
    path = f"/memories/{added['id']}"
    halving.done("POST", "/users/m-two/flush")
    listed = halving.done("GET", "/memories?user_id=m-two")["results"]
    second, first = (memory["id"] for memory in listed)
    assert halving.done("GET", path)["id"] == first
    refused = halving.call("PUT", path, {"text": "x"})
    assert refused.status == 409
    assert first in refused.body["detail"]
    assert second in refused.body["detail"]
    halving.done("DELETE", path)
    assert halving.texts("m-two") == set()


def test_who_waits_is_told_of_memories_of_another_day(halving):
    about = {"expiration_date": "2001-01-01", "timestamp": 1_000_000_000}
    written = halving.say("m-old", "I moved to Porto and I like pasta", **about)
    assert [one["memory"] for one in written] == ["I moved to Porto", "I like pasta"]
    assert {(one["event"], one["state"]) for one in written} == {("ADD", "stored")}
    again = halving.say("m-old", "I moved to Porto and I like pasta", **about)
    assert [(one["id"], one["event"]) for one in again] == [(one["id"], "NONE") for one in written]


def test_who_waits_is_told_that_the_extraction_failed_and_why(halving):
    good, bad = halving.say("m-bad", "I like pasta", "this is unreadable")
    assert (good["state"], good["reason"]) == ("stored", None)
    assert (bad["state"], bad["reason"]) == ("failed", "bad reply")
    shown = halving.done("GET", f"/memories/{bad['id']}")
    assert (shown["state"], shown["reason"]) == ("waiting", "bad reply")
    assert halving.call("PUT", f"/memories/{bad['id']}", {"text": "x"}).status == 409
    halving.done("DELETE", f"/memories/{bad['id']}")
    assert halving.texts("m-bad") == {"I like pasta"}


def test_no_more_is_taken_in_than_may_wait(halving):
    halving.say("m-full", "one", "two", "three", flush=False)
    body = {"messages": "four", "user_id": "m-full"}
    reply = halving.call("POST", "/memories", body)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    halving.done("POST", "/users/m-full/flush")
    assert halving.done("POST", "/memories", body)["results"][0]["event"] == "ADD"


def test_a_key_says_whether_the_same_words_are_sent_again_or_said_again(server):
    body = {"messages": [{"role": "user", "content": "I went running"}] * 2, "user_id": "m-key"}

    def ids(key: str) -> list[tuple[str, str]]:
        headers = {"Idempotency-Key": key} if key else {}
        found = server.done("POST", "/memories", body, headers=headers)["results"]
        return [(one["id"], one["event"]) for one in found]

    first = ids("monday")
    assert [event for _, event in first] == ["ADD", "ADD"]
    assert ids("monday") == [(id, "NONE") for id, _ in first]
    second = ids("tuesday")
    assert [event for _, event in second] == ["ADD", "ADD"]
    server.done("POST", "/users/m-key/flush")
    assert ids("monday") == [(id, "NONE") for id, _ in first]
    assert ids("") == [(id, "NONE") for id, _ in second]


def test_a_memory_has_the_keys_that_mem0_gives_it(server):
    about = {"metadata": {"source": "mail", "rank": 3}, "expiration_date": "2999-12-31"}
    server.say("m-keys", PORTO, agent_id="helper", run_id="r1", **about)
    (memory,) = server.done("GET", "/memories?user_id=m-keys")["results"]
    assert memory.keys() >= KEYS
    assert (memory["user_id"], memory["agent_id"], memory["run_id"]) == ("m-keys", "helper", "r1")
    assert (memory["metadata"], memory["expiration_date"]) == (
        about["metadata"], about["expiration_date"],
    )  # fmt: skip
    assert server.done("GET", f"/memories/{memory['id']}") == memory
    found = server.done("POST", "/search", {"query": "Porto", "user_id": "m-keys"})["results"][0]
    assert {key: found[key] for key in memory} == memory
    assert found["score_parts"].keys() >= {"cosine", "bm25", "speaker", "window"}


def test_the_same_messages_again_store_nothing_twice(server):
    said = [{"role": "user", "content": PORTO}, {"role": "assistant", "content": "How nice"}]
    body = {"messages": said[:1], "user_id": "m-twice"}
    assert server.done("POST", "/memories", body)["results"][0]["event"] == "ADD"
    again = server.done("POST", "/memories", {**body, "messages": said})["results"]
    assert [one["event"] for one in again] == ["NONE", "ADD"]
    server.done("POST", "/users/m-twice/flush")
    again = server.done("POST", "/memories", {**body, "messages": said})["results"]
    assert [one["event"] for one in again] == ["NONE", "NONE"]
    assert server.done("POST", "/users/m-twice/flush") == {"entries": 0}


def test_who_waits_is_told_of_the_memories(server):
    (written,) = server.say("m-wait", PORTO)
    memory = server.done("GET", f"/memories/{written['id']}")
    assert (memory["state"], memory["memory"]) == ("stored", written["memory"])


def test_what_is_not_inferred_is_a_memory_word_for_word(server):
    server.say("m-raw", "  Exactly: THIS  text. And this?  ", infer=False)
    assert {text.strip() for text in server.texts("m-raw")} == {"Exactly: THIS  text. And this?"}


def test_a_memory_is_changed_and_its_history_tells_what_it_was(server):
    (written,) = server.say("m-put", PORTO)
    path = f"/memories/{written['id']}"
    changed = server.done("PUT", path, {"text": "I moved to Faro in May"})
    assert changed["message"] == "Memory updated successfully!"
    server.done("PUT", path, {"data": "I moved to Lagos in May", "metadata": {"by": "hand"}})
    server.done("DELETE", path)
    events = server.done("GET", f"{path}/history")
    assert [event["event"] for event in events] == ["ADD", "UPDATE", "UPDATE", "DELETE"]
    texts = [(event["old_memory"], event["new_memory"]) for event in events]
    assert texts[0] == (None, written["memory"])
    assert texts[1] == (written["memory"], "I moved to Faro in May")
    assert texts[3] == ("I moved to Lagos in May", None)
    assert [event["is_deleted"] for event in events] == [False, False, False, True]
    assert {event["memory_id"] for event in events} == {written["id"]}


def test_a_changed_memory_is_found_by_what_it_now_says(server):
    (written,) = server.say("m-find", PORTO)
    server.say("m-find", PASTA)
    server.done("PUT", f"/memories/{written['id']}", {"text": "the roof of the barn leaks"})
    found = server.done("POST", "/search", {"query": "leaking barn roof", "user_id": "m-find"})
    assert found["results"][0]["id"] == written["id"]


def test_a_deleted_memory_is_in_no_search_and_no_list(server):
    (written,) = server.say("m-del", PORTO)
    server.say("m-del", PASTA)
    answer = server.done("DELETE", f"/memories/{written['id']}")
    assert answer == {"message": "Memory deleted successfully"}
    assert written["memory"] not in server.texts("m-del")
    found = server.done("POST", "/search", {"query": PORTO, "user_id": "m-del", "top_k": 100})
    assert written["id"] not in {memory["id"] for memory in found["results"]}


def test_all_memories_of_a_user_are_erased(server):
    server.say("m-all", PORTO)
    server.say("m-all", PASTA, flush=False)
    server.say("m-other", PASTA)
    answer = server.done("DELETE", "/memories?user_id=m-all")
    assert answer["message"] == "All relevant memories deleted"
    assert sum(answer["counts"].values()) > 0
    assert server.texts("m-all") == set()
    assert server.texts("m-other")


def test_a_run_of_a_user_is_deleted_alone(server):
    server.say("m-run", PORTO, run_id="first")
    server.say("m-run", PASTA, run_id="second")
    answer = server.done("DELETE", "/memories?user_id=m-run&run_id=first")
    assert answer["counts"] == {"deleted": 1}
    assert not any("Porto" in text for text in server.texts("m-run"))
    assert len(server.texts("m-run")) == 1


def test_what_no_user_owns_is_the_agents_or_the_runs(server):
    for owner in ({"agent_id": "m-owner"}, {"run_id": "m-owner"}):
        text = f"I belong to {next(iter(owner))}"
        body = {"messages": [{"role": "user", "content": text}], **owner, "async_mode": False}
        server.done("POST", "/memories", body)
        for asked in (owner, {"filters": owner}):
            found = server.done("POST", "/search", {"query": "who?", **asked})["results"]
            assert [text in memory["memory"] for memory in found] == [True]
            assert found[0]["user_id"] is None
    assert server.texts("m-owner") == set()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/memories", {"messages": [{"role": "user", "content": "x"}]}),
     ("POST", "/search", {"query": "x"}), ("DELETE", "/memories", None),
     ("POST", "/search", {"query": "x", "filters": {"user_id": "*"}}),
     ("POST", "/search", {"query": "x", "filters": {"OR": [{"user_id": "a"}, {"user_id": "b"}]}})],
)  # fmt: skip
def test_who_names_nobody_is_told_so(server, method, path, body):
    reply = server.call(method, path, body)
    assert reply.status == 400
    assert "identifier" in reply.body["detail"]


FILTERS = [
    ({"user_id": "m-f"}, {"mail", "web", "note"}),
    ({"user_id": "m-f", "source": "mail"}, {"mail"}),
    ({"AND": [{"user_id": "m-f"}, {"metadata.source": {"in": ["mail", "web"]}}]}, {"mail", "web"}),
    ({"AND": [{"user_id": "m-f"}, {"NOT": [{"source": "mail"}]}]}, {"web", "note"}),
    ({"AND": [{"user_id": {"eq": "m-f"}}, {"rank": {"gte": 2}}]}, {"web", "note"}),
    ({"AND": [{"user_id": "m-f"}, {"OR": [{"rank": 1}, {"source": {"ne": "web"}}]}]},
     {"mail", "note"}),
    ({"user_id": "m-f", "source": {"icontains": "MA"}}, {"mail"}),
    ({"user_id": "m-f", "nothing": "*"}, set()),
]  # fmt: skip


@pytest.fixture(scope="module")
def tagged(server):
    for rank, source in enumerate(("mail", "web", "note"), 1):
        server.say("m-f", f"a fact from {source}", metadata={"source": source, "rank": rank})
    return server


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters_narrow_a_search(tagged, filters, expected):
    body = {"query": "a fact", "filters": filters, "top_k": 100}
    found = tagged.done("POST", "/search", body)["results"]
    assert {memory["metadata"]["source"] for memory in found} == expected


def test_limits_thresholds_and_times_bound_a_search(tagged):
    for name in ("top_k", "limit"):
        body = {"query": "a fact", "user_id": "m-f", name: 2}
        assert len(tagged.done("POST", "/search", body)["results"]) == 2
    body = {"query": "a fact", "user_id": "m-f"}
    assert tagged.done("POST", "/search", {**body, "threshold": 1.5})["results"] == []
    early = {"until": "2001-01-01T00:00:00Z"}, {"as_of": "2001-01-01T00:00:00Z"}
    for bound in early:
        assert tagged.done("POST", "/search", {**body, **bound})["results"] == []
    later = {**body, "since": "2001-01-01T00:00:00Z"}
    assert len(tagged.done("POST", "/search", later)["results"]) == 3


def test_a_time_that_is_given_is_when_it_was_said(server):
    for user, time in (("m-t1", 1_700_000_000), ("m-t2", "2023-11-14T22:13:20Z")):
        server.say(user, PORTO, timestamp=time)
        (memory,) = server.done("GET", f"/memories?user_id={user}")["results"]
        assert memory["said_at"] == 1_700_000_000_000


def test_what_has_expired_is_shown_when_asked_for(server):
    server.say("m-exp", PORTO, expiration_date="2001-01-01")
    assert server.texts("m-exp") == set()
    shown = server.done("GET", "/memories?user_id=m-exp&show_expired=true")["results"]
    assert [memory["expiration_date"] for memory in shown] == ["2001-01-01"]
    body = {"expiration_date": None}
    server.done("PUT", f"/memories/{shown[0]['id']}", body)
    assert len(server.texts("m-exp")) == 1


def test_a_list_is_read_page_by_page(server):
    server.say("m-page", *(f"fact number {n}" for n in range(5)))
    whole = server.done("GET", "/memories?user_id=m-page&top_k=100")
    assert (len(whole["results"]), whole["next"]) == (5, None)
    pages, after = [], ""
    while after is not None:
        page = server.done("GET", f"/memories?user_id=m-page&limit=2&after={after}")
        pages += page["results"]
        after = page["next"]
    assert pages == whole["results"]


def test_everyones_memories_are_read_page_by_page(start):
    with start() as own:
        for user in ("ada", "bob", "Zoe", "1"):
            own.say(user, *(f"{user} says {n}" for n in range(3)))
        owned = {"messages": "the agent says so", "agent_id": "helper", "async_mode": False}
        own.done("POST", "/memories", owned)
        whole = own.done("GET", "/memories?limit=100")
        assert (len(whole["results"]), whole["next"]) == (13, None)
        pages, after = [], ""
        while after is not None:
            page = own.done("GET", f"/memories?limit=2&after={after}")
            assert len(page["results"]) <= 2
            pages += page["results"]
            after = page["next"]
        assert pages == whole["results"]


def test_runs_are_read_page_by_page_and_by_kind(start):
    with start() as own:
        own.say("ada", PORTO)
        for _ in range(3):
            own.done("POST", "/users/ada/sleep")
        assert [r["kind"] for r in own.done("GET", "/runs?kind=online")["results"]] == ["online"]
        page = own.done("GET", "/runs?kind=sleep&limit=2")
        rest = own.done("GET", f"/runs?kind=sleep&limit=2&after={page['next']}")
        runs = [*page["results"], *rest["results"]]
        times = [run["started_at"] for run in runs]
        assert (len({run["id"] for run in runs}), rest["next"]) == (3, None)
        assert times == sorted(times, reverse=True)
        assert own.call("GET", "/runs?after=none").status == 400


def test_a_context_is_text_within_its_tokens(server):
    server.say("m-ctx", *(f"I have read book number {n}" for n in range(30)))
    body = {"query": "which book?", "user_id": "m-ctx", "tokens": 60}
    found = server.done("POST", "/context", body)
    assert 0 < found["tokens"] <= 60
    assert found["results"]
    assert all(memory["memory"] in found["context"] for memory in found["results"])


def test_sleep_merges_what_was_said_again(server):
    server.say("m-sleep", "I live in Porto", timestamp=1_700_000_000)
    server.say("m-sleep", "I live in Porto", timestamp=1_700_100_000, run_id="later")
    before = server.done("GET", "/memories?user_id=m-sleep")["results"]
    decisions = server.done("POST", "/users/m-sleep/sleep")["decisions"]
    assert sum(decisions.values()) == 1
    (left,) = server.done("GET", "/memories?user_id=m-sleep")["results"]
    (gone,) = [memory for memory in before if memory["id"] != left["id"]]
    tombstone = server.done("GET", f"/memories/{gone['id']}")
    assert (tombstone["state"], tombstone["superseded_by"]) == ("superseded", left["id"])
