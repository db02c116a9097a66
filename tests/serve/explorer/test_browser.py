"""The pages in a real browser: what people do on them, at the width of a desk and of a phone, and
that nothing runs there but their own script."""

from typing import Any

import pytest

DESK, PHONE = (1280, 900), (390, 844)
pytestmark = pytest.mark.browser


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_one_searches_and_opens_what_a_memory_came_from(browse, size):
    page = browse(size)
    page.get_by_role("link", name="ada", exact=True).click()
    page.keyboard.press("/")
    page.keyboard.type("a cat called Biscuit")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="And I have a cat called Biscuit.").first.click()
    assert page.locator("mark").first.inner_text() == "And I have a cat called Biscuit."
    assert page.get_by_text("Poor Biscuit. Heavy curtains").is_visible()


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_one_sees_what_a_sleep_changed(browse, size):
    page = browse(size)
    page.goto("/explore/user?user=ada")
    page.get_by_role("link", name="What changed").click()
    change = page.locator(".merged").first
    before, after = change.locator(".before .to"), change.locator(".after .to")
    assert before.inner_text() == after.inner_text() == "I live in Lisbon now."
    struck = "getComputedStyle(element).textDecorationLine"
    assert before.evaluate(f"element => {struck}") == "line-through"
    before.click()
    assert page.get_by_text("Replaced", exact=True).is_visible()


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_no_page_is_wider_than_the_window(browse, size, evil):
    page = browse(size)
    run = page.goto("/explore/runs") and page.get_by_role("link", name="Backfill")
    places = ["/explore", "/explore/runs", run.get_attribute("href")]
    for user in ("ada", "Jos%C3%A9 N%C3%BA%C3%B1ez"):
        names = ("user", "changes", "search")
        places += [f"/explore/{name}?user={user}&q=Lisbon" for name in names]
    for place in places:
        page.goto(place)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size[0], place
        plots = page.locator("svg.plot:visible").count()
        assert plots > 0 or "user?" not in place


def test_what_users_wrote_does_not_run(browse, evil):
    user, text = evil
    page = browse()
    page.get_by_role("link", name=user).click()
    for go in ("What changed", "Search", "Time line"):
        page.get_by_role("link", name=go).click()
        assert "taken" not in page.title().replace(user, "")
    page.get_by_role("link", name=text).click()
    assert page.locator("blockquote").inner_text() == text
    assert page.locator("main script, main img, main iframe").count() == 0
    page.get_by_label("Search these memories").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?**")
    assert page.get_by_label("Search these memories").input_value() == text
    assert page.evaluate("document.title") != "taken"


def test_a_script_in_a_page_would_be_stopped(chromium, shown):
    """That the policy holds, whatever else fails."""
    page, said = chromium.new_page(base_url=shown.url), []
    page.on("console", lambda message: said.append(message.text))

    def slip_in(route: Any) -> None:
        answer = route.fetch()
        evil = "<script>document.title='taken'</script><p onclick=\"document.title='taken'\">x</p>"
        route.fulfill(response=answer, body=answer.text().replace("<h1>", f"{evil}<h1>"))

    page.route("**/login", slip_in)
    page.goto("/explore/login")
    page.get_by_text("x", exact=True).click()
    assert page.title() == "Sign in · LightMem"
    assert sum("Content Security Policy" in text for text in said) == 2
    page.close()


def test_the_cookie_is_out_of_reach_of_scripts(browse):
    page = browse()
    (cookie,) = page.context.cookies()
    facts = (cookie["httpOnly"], cookie["sameSite"], cookie["path"])
    assert facts == (True, "Strict", "/explore")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    assert page.context.cookies() == []


def test_both_schemes_can_be_read(chromium, shown):
    """Text against its background, as WCAG counts it: at least 4.5 to 1."""
    for scheme in ("light", "dark"):
        page = chromium.new_page(base_url=shown.url, color_scheme=scheme)
        page.goto("/explore/login")
        colours = page.evaluate(
            """() => {
            const style = getComputedStyle(document.documentElement);
            const of = (name) => style.getPropertyValue(`--${name}`).trim();
            return Object.fromEntries(["paper", "sheet", "ink", "soft", "accent"].map(
                (name) => [name, of(name)]));
            }"""
        )
        for ground in ("paper", "sheet"):
            for text in ("ink", "soft", "accent"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)
        page.close()


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * letter for letter in digits) if len(digits) == 3 else digits
    shares = (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
