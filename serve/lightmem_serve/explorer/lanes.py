"""The time line as a plot: a lane for each topic, a dot for what was said at about one time."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from markupsafe import Markup

from lightmem_core.long_term.render import EPOCH, MONTHS, day
from lightmem_core.online.overview import Point
from lightmem_serve.explorer.places import url
from lightmem_serve.explorer.plots import cut, figure, tag

DAY_MS = 86_400_000
MOST_LANES = 16
DAYS, MONTHS_APART = (1, 7), (1, 3, 6, 12, 60, 120, 600, 2_400, 12_000, 60_000)
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
EDGE, TOP, DOT = 14, 26, 2.6
NONE = "without a topic"
OTHERS = "other topics"


@dataclass(slots=True)
class Dot:
    """Memories of a topic so close in time that they are one in the plot."""

    ids: list[str] = field(default_factory=list)
    gone: int = 0
    first: int = 0

    def add(self, point: Point) -> None:
        self.first = self.first if self.ids else point.said_at
        self.ids.append(point.id)
        self.gone += point.gone


@dataclass(frozen=True, slots=True)
class Lane:
    """A topic, None for those that found no lane of their own."""

    topic: str | None
    points: list[Point]

    @property
    def name(self) -> str:
        return OTHERS if self.topic is None else self.topic or NONE


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a plot of `width` px puts times. On a narrow one names stand above the lanes."""

    width: int
    first: int
    last: int

    @property
    def wide(self) -> bool:
        return self.width > 600

    @property
    def left(self) -> float:
        return 226 if self.wide else EDGE

    @property
    def step(self) -> float:
        return 25 if self.wide else 42

    def x(self, at: float) -> float:
        room = self.width - self.left - EDGE
        return self.left + (at - self.first) / max(self.last - self.first, 1) * room


def lanes_of(points: Sequence[Point], most: int = MOST_LANES) -> list[Lane]:
    """Topics in the order in which they came up; if there are too many, those with the most
    memories, and the others together."""
    topics: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        topics[point.topic].append(point)
    ranked = sorted(topics, key=lambda topic: -len(topics[topic]))
    kept = set(ranked if len(ranked) <= most else ranked[: most - 1])
    found = [Lane(topic, of_it) for topic, of_it in topics.items() if topic in kept]
    others = [point for point in points if point.topic not in kept]
    return [*found, Lane(None, others)] if others else found


def lanes(user: str, points: Sequence[Point], width: int, chosen: str | None = None) -> Markup:
    """All of a user's memories by topic and time, those of the chosen topic brought out."""
    rows = lanes_of(points)
    frame = _frame(points, width)
    height = TOP + frame.step * len(rows) + 6
    scale = (_tick(frame, height, tick) for tick in ticks(frame))
    drawn = (
        _lane(frame, TOP + frame.step * (at + 1), row, (user, chosen))
        for at, row in enumerate(rows)
    )
    span = f"{day(points[0].said_at)} to {day(points[-1].said_at)}" if points else "nothing yet"
    about = f"{len(points)} memories of {len(rows)} topics, {span}"
    return figure("Memories by topic and time", about, (width, height), *scale, *drawn)


def ticks(frame: Frame) -> list[tuple[int, str]]:
    """Times to name within a plot, as many as have room, and their names."""
    first, last = max(frame.first, FIRST_MS), min(frame.last, LAST_MS)
    most = 8 if frame.wide else 4
    for days in DAYS:
        if (last - first) // (days * DAY_MS) < most:
            begin = -(-first // (days * DAY_MS)) * days * DAY_MS
            found = range(begin, last + 1, days * DAY_MS)
            return [(at, _day_name(at, at == found[0])) for at in found]
    months = _month(first) + 1, _month(last) + 1
    for apart in MONTHS_APART:
        found = range(-(-months[0] // apart) * apart, months[1], apart)
        if len(found) <= most:
            return [(_begin(m), _month_name(m, apart, m == found[0])) for m in found]
    return []


def _month(at: int) -> int:
    """Months since the beginning of the year 0."""
    date = EPOCH + timedelta(milliseconds=at)
    return date.year * 12 + date.month - 1


def _begin(month: int) -> int:
    date = EPOCH.replace(year=month // 12, month=month % 12 + 1)
    return (date - EPOCH) // timedelta(milliseconds=1)


def _day_name(at: int, first: bool) -> str:
    date = EPOCH + timedelta(milliseconds=at)
    return f"{date.day} {MONTHS[date.month - 1][:3]}" + (f" {date.year}" if first else "")


def _month_name(month: int, apart: int, first: bool) -> str:
    """The year is told where it begins, and once at least."""
    year, name = month // 12, MONTHS[month % 12][:3]
    if apart >= 12:
        return str(year)
    return f"{name} {year}" if first or month % 12 == 0 else name


def _frame(points: Sequence[Point], width: int) -> Frame:
    """With a little room at both ends, and at least two days."""
    times = [point.said_at for point in points] or [0]
    pad = max((max(times) - min(times)) // 40, DAY_MS)
    return Frame(width, min(times) - pad, max(times) + pad)


def _tick(frame: Frame, height: float, tick: tuple[int, str]) -> Markup:
    x = frame.x(tick[0])
    line = tag("line", class_="grid", x1=x, x2=x, y1=TOP - 8, y2=height)
    return line + tag("text", tick[1], class_="tick", x=x, y=12)


def _lane(frame: Frame, y: float, lane: Lane, place: tuple[str, str | None]) -> Markup:
    user, chosen = place
    dots: dict[int, Dot] = defaultdict(Dot)
    for point in lane.points:
        dots[round(frame.x(point.said_at) / 5)].add(point)
    edge = frame.width - EDGE
    drawn = [tag("line", class_="lane", x1=frame.left, x2=edge, y1=y - 8, y2=y - 8)]
    drawn.append(_label(frame, y, lane, user))
    drawn += [_dot(user, lane, dot, (frame.x(dot.first), y - 8)) for dot in dots.values()]
    faded = chosen is not None and chosen != lane.topic
    return tag("g", *drawn, class_="faded" if faded else None)


def _label(frame: Frame, y: float, lane: Lane, user: str) -> Markup:
    hint = tag("title", f"{lane.name}: {len(lane.points)} memories")
    room = frame.left - 16 if frame.wide else frame.width - 2 * EDGE
    where = (0, y - 4) if frame.wide else (0, y - 23)
    name = tag("text", hint, cut(lane.name, room), class_="label", x=where[0], y=where[1])
    if lane.topic is None:
        return name
    return tag("a", name, href=_topic(user, lane.topic), tabindex=-1)


def _dot(user: str, lane: Lane, dot: Dot, at: tuple[float, float]) -> Markup:
    count = len(dot.ids)
    kind = "gone" if dot.gone == count else "some" if dot.gone else "held"
    told = "1 memory" if count == 1 else f"{count} memories"
    told += f", {dot.gone} replaced" if dot.gone else ""
    hint = tag("title", f"{day(dot.first)}: {told}")
    mark = tag("circle", hint, class_=f"dot {kind}", cx=at[0], cy=at[1], r=radius(count))
    if kind == "some":
        mark += tag("circle", class_="hole", cx=at[0], cy=at[1], r=2.2)
    if count == 1:
        return tag("a", mark, href=url("memory", user=user, id=dot.ids[0]), tabindex=-1)
    return (
        mark if lane.topic is None else tag("a", mark, href=_topic(user, lane.topic), tabindex=-1)
    )


def radius(count: int) -> float:
    """The area grows with the number."""
    return min(DOT * count**0.5 + 1, 9.5)


def _topic(user: str, topic: str) -> str:
    return url("user", user=user, topic=topic)
