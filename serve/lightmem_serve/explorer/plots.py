"""Plots as SVG: pure functions from numbers to markup. Colours are those of the style sheet."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from markupsafe import Markup, escape

LETTER = 6.4  # px, about, of a label
WIDTH = 440
ROW = 26
LABELS, VALUES = 150, 64
METERS, METER = 260, 19


@dataclass(frozen=True, slots=True)
class Part:
    """A quantity with its name; `kind` is the class that colours it, `shown` its value as text."""

    label: str
    value: float
    shown: str = ""
    kind: str = "plain"

    @property
    def text(self) -> str:
        return self.shown or f"{self.value:,.0f}"


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """An element. `class_` is class, and other underscores are hyphens; all is escaped."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    written = Markup("").join(
        Markup(' {}="{}"').format(key, _plain(value)) for key, value in named if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(
        Markup(name), written, Markup("").join(map(escape, inside))
    )


def figure(title: str, about: str, size: tuple[float, float], *inside: Markup) -> Markup:
    """A plot with what a reader says who does not see it."""
    width, height = size
    name = "p" + hashlib.sha256(f"{title}{about}{width}".encode()).hexdigest()[:10]
    return tag(
        "svg",
        *(tag("title", title, id=f"{name}-t"), tag("desc", about, id=f"{name}-d")),
        *inside,
        class_="plot",
        role="img",
        aria_labelledby=f"{name}-t {name}-d",
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        width=width,
        height=height,
    )


def bars(title: str, parts: Sequence[Part]) -> Markup:
    """A bar for each part, the longest across the plot, each with its value."""
    most = max((part.value for part in parts), default=0) or 1
    room = WIDTH - LABELS - VALUES
    rows = (_bar(part, at * ROW, part.value / most * room) for at, part in enumerate(parts))
    return figure(title, spoken(parts), (WIDTH, max(len(parts), 1) * ROW), *rows)


def whole(title: str, parts: Sequence[Part]) -> Markup:
    """One bar that the parts share; those that are nothing are left out. Names follow below."""
    real = [part for part in parts if part.value > 0]
    total = sum(part.value for part in real) or 1
    drawn, x = [], 0.0
    for part in real:
        width = part.value / total * WIDTH
        hint = tag("title", f"{part.label}: {part.text}")
        box = {"x": x, "y": 0, "width": max(width - 1.5, 1), "height": 14, "rx": 2}
        drawn.append(tag("rect", hint, class_=f"fill {part.kind}", **box))
        x += width
    named = (_named(part, 22 + ROW * (at + 1) - 4) for at, part in enumerate(parts))
    return figure(title, spoken(parts), (WIDTH, 26 + ROW * len(parts)), *drawn, *named)


def meters(title: str, parts: Sequence[Part]) -> Markup:
    """Thin bars, one below the other, each out of 1."""
    drawn = (_meter(part, at * METER) for at, part in enumerate(parts))
    return figure(title, spoken(parts), (METERS, METER * len(parts)), *drawn)


def spoken(parts: Iterable[Part]) -> str:
    return ", ".join(f"{part.label}: {part.text}" for part in parts)


def cut(text: str, px: float) -> str:
    """As much of a text as has room. Chinese, Japanese and Korean letters are twice as wide."""
    left = px / LETTER
    for place, letter in enumerate(text):
        left -= 2 if east_asian_width(letter) in "WF" else 1
        if left < 0:
            return f"{text[: max(place - 1, 1)].rstrip(' ,')}…"
    return text


def _meter(part: Part, y: float) -> Markup:
    x, room = 72, METERS - 72 - 52
    box = {"x": x, "y": y + 8, "height": 3, "rx": 1.5}
    return tag(
        "g",
        tag("text", part.label, class_="label", x=0, y=y + 13),
        tag("rect", class_="rail", width=room, **box),
        tag("rect", class_=f"fill {part.kind}", width=min(max(part.value, 0), 1) * room, **box),
        tag("text", part.text, class_="value end", x=METERS, y=y + 13),
    )


def _bar(part: Part, y: float, width: float) -> Markup:
    return tag(
        "g",
        tag("title", f"{part.label}: {part.text}"),
        tag("text", cut(part.label, LABELS - 8), class_="label", x=0, y=y + 17),
        tag("rect", class_=f"fill {part.kind}", x=LABELS, y=y + 8, width=max(width, 1), height=10,
            rx=2),
        tag("text", part.text, class_="value", x=LABELS + width + 8, y=y + 17),
    )  # fmt: skip


def _named(part: Part, y: float) -> Markup:
    return tag(
        "g",
        tag("rect", class_=f"fill {part.kind}", x=0, y=y - 10, width=11, height=11, rx=2),
        tag("text", part.label, class_="label", x=20, y=y),
        tag("text", part.text, class_="value end", x=WIDTH, y=y),
    )


def _plain(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
