"""From the store's rows to what the pages show of them."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from lightmem_core.long_term.render import day
from lightmem_core.long_term.retrieve import Hit
from lightmem_core.long_term.versions import EntryHistory, held_since
from lightmem_core.metadata import parsed
from lightmem_core.online.overview import Change, Story, TimeLine
from lightmem_core.types import Entry, Message
from lightmem_serve.explorer.plots import Part, meters
from lightmem_serve.explorer.rendering import short
from lightmem_serve.results import state_of

MOST_WORDS = 3_000  # of a text that is compared word by word
WORD = re.compile(r"\s+|\w+|[^\w\s]")
SENTENCE = re.compile(r"(?<=[.!?。！？…])\s+|(?<=[。！？])")
MARKED = Markup("<mark>{}</mark>")
OUTCOMES = {
    "merged": "It was said again later.",
    "superseded": "A later statement took its place.",
    "updated": "Its text was changed.",
    "deleted": "It is hidden from searches.",
    "restored": "It holds again.",
}
RUNS = {
    "sleep": "Sleep phase",
    "undo": "Undo",
    "online": "Through the server",
    "import": "Import",
    "reembed": "New embeddings",
    "backfill": "Backfill",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Memories of a topic, said on a day, one after the other."""

    day: str
    at: int
    topic: str
    entries: list[Entry]
    same_day: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, and whether the memory was written of it, with what was taken out of it marked;
    `apart`: not next to the one before, `dated`: not of the same day."""

    message: Message
    source: bool
    marked: Markup
    apart: bool
    dated: bool


@dataclass(frozen=True, slots=True)
class State:
    """What a memory said from a time on, because of a run; `marked` shows what was new."""

    entry: Entry
    at: int
    by: str
    marked: Markup


@dataclass(frozen=True, slots=True)
class Step:
    """What a run changed."""

    run_id: str
    name: str
    at: int
    changes: list[Change]


def groups(page: Sequence[Entry]) -> list[Group]:
    found: list[Group] = []
    for (when, topic), entries in groupby(page, lambda entry: (day(entry.said_at), entry.topic)):
        of_it = list(entries)
        same = bool(found) and found[-1].day == when
        found.append(Group(when, of_it[0].said_at, topic, of_it, same))
    return found


def summary(line: TimeLine) -> dict[str, int]:
    gone = sum(point.gone for point in line.points)
    topics = len({point.topic for point in line.points})
    return {"held": len(line.points) - gone, "gone": gone, "topics": topics}


def turns(story: Story) -> list[Turn]:
    found: list[Turn] = []
    for message in story.around:
        last = found[-1].message if found else message
        near = last.session_id == message.session_id and message.position - last.position <= 1
        dated = not found or day(last.said_at) != day(message.said_at)
        source = message.id in story.sources
        text = story.provenance.entry.text
        marked = taken(message.content, text) if source else Markup.escape(short(message.content))
        found.append(Turn(message, source, marked, not near, dated))
    return found


def taken(content: str, text: str) -> Markup:
    """A message with its sentences marked that a memory repeats; one said in other words is
    marked as a whole."""
    sentences = [sentence for sentence in SENTENCE.split(text) if sentence]
    places = [content.find(sentence) for sentence in sentences]
    if not sentences or min(places) < 0:
        return MARKED.format(content)
    marked, end = Markup(""), 0
    for start, sentence in sorted(zip(places, sentences, strict=True)):
        if start >= end:
            marked += content[end:start] + MARKED.format(sentence)
            end = start + len(sentence)
    return marked + content[end:]


def states(history: EntryHistory) -> list[State]:
    """What a memory said, newest first; changes that are none of its words are left out."""
    found: list[State] = []
    for entry in history.states:
        if found and (found[-1].entry.text, found[-1].entry.active) == (entry.text, entry.active):
            continue
        marked = (
            compared(found[-1].entry.text, entry.text)[1] if found else Markup.escape(entry.text)
        )
        found.append(State(entry, held_since(entry), entry.changed_by or entry.run_id, marked))
    return found[::-1]


def steps(changes: Sequence[Change]) -> list[Step]:
    found = []
    for run_id, of_run in groupby(changes, lambda change: change.after.changed_by):
        listed = list(of_run)
        found.append(Step(run_id, run_name(run_id), listed[0].after.changed_at, listed))
    return found


def run_name(run_id: str) -> str:
    kind = run_id.partition("-")[0]
    return RUNS.get(kind, kind.capitalize())


def compared(old: str, new: str) -> tuple[Markup, Markup]:
    """Both texts, with <del> around what went and <ins> around what came."""
    words = [WORD.findall(text) for text in (old, new)]
    if max(map(len, words)) > MOST_WORDS:
        return Markup.escape(old), Markup.escape(new)
    matched = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    went = _marked(words[0], ((i, j, tag == "equal") for tag, i, j, _, _ in matched), "del")
    came = _marked(words[1], ((i, j, tag == "equal") for tag, _, _, i, j in matched), "ins")
    return went, came


def _marked(words: Sequence[str], parts: Iterator[tuple[int, int, bool]], tag: str) -> Markup:
    around = Markup(f"<{tag}>{{}}</{tag}>")
    texts = (("".join(words[i:j]), same) for i, j, same in parts if j > i)
    return Markup("").join(
        Markup.escape(text) if same else around.format(text) for text, same in texts
    )


def scores(hits: Sequence[Hit]) -> list[Markup]:
    """How each hit came to its place: words and closeness as shares of the best one's."""
    best = {
        name: max((getattr(hit, name) for hit in hits), default=0) for name in ("bm25", "window")
    }
    return [
        meters(f"Scores of result {rank}", _parts(hit, best)) for rank, hit in enumerate(hits, 1)
    ]


def _parts(hit: Hit, best: Mapping[str, float]) -> list[Part]:
    window, words = (_share(getattr(hit, name), best[name]) for name in ("window", "bm25"))
    return [
        Part("meaning", hit.cosine, f"{hit.cosine:.2f}", "c1"),
        Part("around it", window, f"{hit.window:.2f}", "c2"),
        Part("words", words, f"{hit.bm25:.1f}", "c3"),
        Part("speaker", hit.speaker, "named" if hit.speaker else "–", "c4"),
    ]


def _share(value: float, best: float) -> float:
    return value / best if best > 0 else 0.0


def metadata(entry: Entry) -> list[tuple[str, str]]:
    said = parsed(entry.metadata)
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in said.items()
    ]


def state(entry: Entry) -> str:
    return state_of(entry)


def other_day(entry: Entry) -> int | None:
    """When what an entry tells of happened, unless it was on the day that it was said."""
    if entry.event_at is None or day(entry.event_at) == day(entry.said_at):
        return None
    return entry.event_at
