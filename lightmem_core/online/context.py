"""The best memories as text for a prompt, within a number of tokens.

    8 May 2023, session s1
    - Ada: we adopted a beagle [4]
    - Bob: the beagle eats shoes [6, 7]

They stand in the order in which they were said, under their day and session, each with the
positions of the messages that it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lightmem_core.long_term.render import day
from lightmem_core.long_term.retrieve import Hit
from lightmem_core.online.service import Context
from lightmem_core.protocols import Tokenizer
from lightmem_core.types import Entry


def packed(hits: Sequence[Hit], tokens: int, tokenizer: Tokenizer) -> Context:
    """As many of the hits, best first, as fit; one that does not fit leaves room for those after
    it. Raise ValueError if there are no tokens to fill."""
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    chosen = _chosen(hits, tokens, tokenizer)
    while chosen:
        text = rendered([hit.entry for hit in chosen])
        (count,) = tokenizer.count([text])
        if count <= tokens:
            return Context(text, count, tuple(chosen))
        chosen.pop()  # tokens of a whole may be more than those of its lines
    return Context("", 0, ())


def rendered(entries: Sequence[Entry]) -> str:
    """Line breaks of a text become spaces: no memory can pass for a heading or for another one."""
    ordered = sorted(entries, key=lambda entry: entry.order)
    groups = groupby(ordered, key=_heading)
    lines = (line for heading, part in groups for line in (heading, *map(_line, part)))
    return "\n".join(lines)


def _chosen(hits: Sequence[Hit], tokens: int, tokenizer: Tokenizer) -> list[Hit]:
    """By the tokens of each line alone, and of the headings that it needs."""
    headings = [_heading(hit.entry) for hit in hits]
    lines = [_line(hit.entry) for hit in hits]
    of_lines = tokenizer.count(lines) if hits else []
    of_headings = tokenizer.count(headings) if hits else []
    chosen, used, shown = [], 0, set[str]()
    for hit, heading, *costs in zip(hits, headings, of_lines, of_headings, strict=True):
        cost = costs[0] + (0 if heading in shown else costs[1])
        if used + cost <= tokens:
            chosen.append(hit)
            used += cost
            shown.add(heading)
    return chosen


def _heading(entry: Entry) -> str:
    return f"{day(entry.said_at)}, session {_flat(entry.session_id)}"


def _line(entry: Entry) -> str:
    return f"- {_flat(entry.speaker)}: {_flat(entry.text)} [{', '.join(_places(entry))}]"


def _places(entry: Entry) -> list[str]:
    """The session is named where it is not that of the heading."""
    return [
        str(s.position)
        if s.session_id == entry.session_id
        else f"{_flat(s.session_id)} {s.position}"
        for s in entry.sources
    ]


def _flat(text: str) -> str:
    return " ".join(text.split())
