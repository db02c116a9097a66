"""Plots: what they say, where they put it, and that their markup is whole whatever they hold."""

import re
from xml.etree import ElementTree

import pytest

from lightmem_core.online.overview import Point
from lightmem_serve.explorer.lanes import Frame, lanes, lanes_of, ticks
from lightmem_serve.explorer.plots import Part, bars, cut, meters, whole
from lightmem_serve.explorer.views import compared, taken

DAY = 86_400_000
YEAR = 366 * DAY
EVIL = "</title><script>&\"'"
FIRST, LAST = -62_135_596_800_000, 253_402_300_799_999


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


@pytest.mark.parametrize("plot", [bars, whole, meters])
def test_a_plot_is_named_and_described(plot):
    svg = read(plot(EVIL, [Part(EVIL, 3), Part("nothing", 0, "–")]))
    title, about = svg.find("title"), svg.find("desc")
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby").split() == [title.get("id"), about.get("id")]
    assert (title.text, about.text) == (EVIL, f"{EVIL}: 3, nothing: –")
    assert read(plot("empty", [])) is not None


def test_bars_are_as_long_as_their_values():
    svg = read(bars("b", [Part("a", 50), Part("b", 100), Part("c", 0)]))
    a, b, c = (float(bar.get("width")) for bar in svg.iter("rect"))
    assert b == pytest.approx(2 * a, abs=0.2)
    assert c == 1


def test_the_parts_of_a_whole_fill_it():
    svg = read(whole("w", [Part("a", 1), Part("none", 0), Part("b", 3)]))
    boxes = [box for box in svg.iter("rect") if box.get("height") == "14"]
    assert [float(box.get("x")) for box in boxes] == [0, 110]
    assert [float(box.get("width")) for box in boxes] == [108.5, 328.5]


def test_a_time_line_has_a_lane_for_each_topic_and_links_what_it_shows():
    points = [Point("m1", 0, EVIL, False), Point("m2", 300 * DAY, "tea", True)]
    points.append(Point("m3", 300 * DAY + 5, "tea", False))
    svg = read(lanes("a&b", points, 960))
    assert "3 memories of 2 topics, 1 January 1970 to 28 October 1970" in svg.find("desc").text
    hrefs = [link.get("href") for link in svg.iter("a")]
    assert "/explore/memory?user=a%26b&id=m1" in hrefs
    dots = [dot for dot in svg.iter("circle") if "dot" in dot.get("class")]
    assert [dot.get("class") for dot in dots] == ["dot held", "dot some"]
    assert float(dots[0].get("cx")) < float(dots[1].get("cx"))
    assert float(dots[0].get("r")) < float(dots[1].get("r"))
    assert dots[1].find("title").text == "28 October 1970: 2 memories, 1 replaced"


def test_too_many_topics_share_the_last_lane():
    points = [Point(f"{t}.{n}", n, f"t{t}", False) for t in range(30) for n in range(t + 1)]
    found = lanes_of(points, 5)
    assert [lane.topic for lane in found] == ["t26", "t27", "t28", "t29", None]
    assert sum(len(lane.points) for lane in found) == len(points)
    assert [lane.topic for lane in lanes_of(points[:3], 5)] == ["t0", "t1"]


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, DAY), (0, 9 * DAY), (0, 40 * DAY), (0, YEAR), (0, 3 * YEAR), (0, 40 * YEAR),
     (FIRST, LAST), (FIRST, FIRST + DAY), (LAST - 3 * YEAR, LAST), (-5 * YEAR, 5 * YEAR)],
)  # fmt: skip
@pytest.mark.parametrize("width", [960, 400])
def test_ticks_are_few_and_in_order_over_any_span(first, last, width):
    found = ticks(Frame(width, first, last))
    assert len(found) <= 8
    assert [at for at, _ in found] == sorted({at for at, _ in found})
    assert all(first <= at <= last for at, _ in found)
    assert found
    assert re.search(r"\d{1,4}$", found[0][1])


@pytest.mark.parametrize("at", [FIRST, 0, LAST])
def test_a_time_line_of_any_years_can_be_drawn(at):
    assert len(list(read(lanes("u", [Point("m", at, "", False)], 400)).iter("circle"))) == 1
    assert read(lanes("u", [], 960)) is not None


def test_labels_are_cut_to_their_room_wide_letters_sooner():
    assert cut("short", 100) == "short"
    assert len(cut("x" * 100, 100)) <= 16
    assert len(cut("我" * 100, 100)) <= 8


def test_a_comparison_keeps_both_texts_whole():
    old, new = 'a <b>"x" & y', "a <i>z & y!"
    went, came = compared(old, new)
    assert re.sub(r"</?(del|ins)>", "", went).replace("&lt;", "<") != ""
    assert read(f"<p>{went}</p>").itertext().__next__().startswith("a <")
    assert "".join(read(f"<p>{went}</p>").itertext()) == old
    assert "".join(read(f"<p>{came}</p>").itertext()) == new
    assert "".join(read(f"<p>{compared('a ' * 9_000, 'b')[0]}</p>").itertext()) == "a " * 9_000


def test_a_source_is_marked_where_the_memory_repeats_it():
    def marked(content: str, text: str) -> list[str]:
        found = read(f"<p>{taken(content, text)}</p>")
        assert "".join(found.itertext()) == content
        return [mark.text for mark in found.iter("mark")]

    content = "Hi! I live in York. It rains <a lot>. 我住在成都。很好。"
    assert marked(content, "I live in York. It rains <a lot>.") == [
        "I live in York.",
        "It rains <a lot>.",
    ]
    assert marked(content, "我住在成都。") == ["我住在成都。"]
    assert marked(content, "They live in York.") == [content]
