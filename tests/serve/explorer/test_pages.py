"""What people see: users, time lines, where a memory came from, what changed, search and runs."""

import re
from html import escape
from urllib.parse import quote


def test_one_picks_a_user_and_sees_the_time_line(admin, shown):
    first = admin.get("/")
    assert (first.status, first.headers["location"]) == (303, "/explore")
    page = admin.get(admin.get("/explore").link("José Núñez"))
    assert "Memories of José Núñez" in page.words
    listed = f"/memories?user_id={quote('José Núñez')}&limit=1000"
    held = len(shown.done("GET", listed)["results"])
    assert held > 40
    assert f"{held} memories of" in page.words
    assert "8 April 2025" in page.words
    assert page.words.index("15 May 2025") < page.words.index("8 April 2025")


def test_users_are_found_by_how_their_ids_begin(admin, evil):
    def found(starts: str) -> list[str]:
        page = admin.get(f"/explore?starts={starts}")
        return re.findall(r'<li><a [^>]*dir="auto">(.*?)</a>', page.text)

    assert found("") == [
        "José Núñez",
        "ada",
        escape(evil[0]).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    ]
    assert found("a") == ["ada"]
    assert found("Jos%C3%A9") == ["José Núñez"]
    assert found("zzz") == found("@") == found("@acme/") == []


def test_a_topic_shows_its_memories_alone(admin):
    line = admin.of("user", user="ada")
    link = next(link for link in line.links if "topic=" in link)
    page = admin.get(link)
    assert page.words.count("Show all topics") == 1
    assert 0 < len(re.findall(r'class="to"', page.text)) < len(re.findall(r'class="to"', line.text))
    assert "There are no memories of this topic" in admin.of("user", user="ada", topic="x").words


def test_a_memory_shows_the_messages_that_it_came_from_and_those_around(admin):
    found = admin.of("search", user="ada", q="a cat called Biscuit")
    page = admin.get(found.link("And I have a cat called Biscuit."))
    assert re.search(r"<blockquote[^>]*>And I have a cat called Biscuit\.", page.text)
    marked = re.findall(r"<mark>(.*?)</mark>", page.text)
    assert marked == ["And I have a cat called Biscuit.", "He is four and hates the tram noise."]
    assert "Poor Biscuit. Heavy curtains" in page.words
    assert "3 February 2025, 19:15" in page.words
    assert "ada-01" in page.words


def test_what_the_sleep_changed_is_shown_before_and_after(admin):
    page = admin.of("changes", user="ada")
    assert "Sleep phase" in page.words
    change = re.search(r'<li class="merged">.*?</li>', page.text, re.S)[0]
    assert "It was said again later." in change
    before, after = re.findall(r'<a class="to" href="([^"]*)"[^>]*>I live in Lisbon now\.', change)
    assert before != after
    old = admin.get(before.replace("&amp;", "&"))
    assert "Replaced" in old.words
    assert "Now I live in Lisbon now. 1 November 2025" in old.words
    assert "What it took the place of" in admin.get(after.replace("&amp;", "&")).words
    assert "Nothing has changed" in admin.of("changes", user="José Núñez").words
    assert "changed nothing" in admin.of("changes", user="ada", run="sleep-of-others").words


def test_a_changed_text_is_marked_word_by_word(admin, shown):
    (said,) = shown.say("mona", "I drink green tea", infer=False)
    shown.done("PUT", f"/memories/{said['id']}", {"text": "I drink black tea"})
    page = admin.of("changes", user="mona")
    assert "I drink <del>green</del> tea" in page.text
    assert "I drink <ins>black</ins> tea" in page.text
    assert "I drink <ins>black</ins> tea" in admin.of("memory", user="mona", id=said["id"]).text


def test_a_search_shows_the_parts_of_each_score(admin):
    page = admin.of("search", user="ada", q="Where do I live?")
    plots = re.findall(
        r"<title[^>]*>Scores of result (\d+)</title><desc[^>]*>(.*?)</desc>", page.text
    )
    assert [rank for rank, _ in plots] == [str(rank) for rank in range(1, 11)]
    assert re.fullmatch(r"meaning: -?\d.\d\d, around it: .*, words: .*, speaker: .*", plots[0][1])
    before = admin.of("search", user="ada", q="Where do I live?", until="2025-02-03")
    assert set(re.findall(r"\d+ \w+ 20\d\d ·", before.words)) == {"3 February 2025 ·"}
    assert admin.of("search", user="ada", q="x", since="soon").status == 422


def test_what_waits_is_on_the_time_line_at_once(admin, shown):
    shown.say("nils", "I bought a boat", flush=False)
    page = admin.of("user", user="nils")
    assert "I bought a boat" in page.words
    assert "not extracted yet" in page.words
    assert "Waits to be extracted" in admin.get(page.link("I bought a boat")).words


def test_long_time_lines_have_pages_without_gaps_or_repeats(admin, shown):
    said = [{"role": "user", "content": f"number {n:03}"} for n in range(230)]
    body = {"messages": said, "user_id": "paula", "infer": False}
    shown.done("POST", "/memories", body)
    page, seen = admin.of("user", user="paula"), []
    while True:
        seen += re.findall(r">number (\d+)<", page.text)
        if "Older memories" not in page.words:
            break
        page = admin.get(page.link("Older memories"))
    assert seen == [f"{n:03}" for n in reversed(range(230))]
    assert admin.of("user", user="paula", before="gone").status == 400


def test_a_run_shows_its_report_as_plots(admin):
    runs = admin.get("/explore/runs")
    assert "Sleep phase" in runs.words
    assert "8 users, 377 memories, 60 topic segments" in runs.words
    page = admin.get(runs.link("Backfill"))
    told = dict(re.findall(r"<title[^>]*>([^<]*)</title><desc[^>]*>([^<]*)</desc>", page.text))
    messages = "stored: 365, no facts: 43, duplicate: 1, quarantined: 6"
    assert told["What became of the messages"] == messages
    assert told["Tokens of the messages"] == "as said: 7,191, compressed: 5,258"
    assert told["Seconds of work by step"] == "compress: 1.9 s, embed: 5.2 s"
    assert "bad json: 4" in told["Why messages were set aside"]
    sleep = admin.get(runs.link("Sleep phase"))
    assert "What became of the memories" in sleep.words
    assert admin.of("run", id="nothing").status == 404


def test_every_link_on_every_page_leads_somewhere(admin):
    seen, ahead = set(), ["/explore"]
    while ahead and len(seen) < 120:
        path = ahead.pop(0)
        seen.add(path)
        page = admin.get(path)
        assert page.status == 200, path
        more = (link for link in page.links if link.startswith("/explore") and "#" not in link)
        ahead += [link for link in dict.fromkeys(more) if link not in seen and link not in ahead]
    kinds = {path.partition("?")[0] for path in seen}
    assert kinds >= {f"/explore/{page}" for page in ("user", "memory", "changes", "search", "run")}
