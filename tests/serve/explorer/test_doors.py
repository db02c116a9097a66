"""Who sees what: keys and cookies, other users and tenants, and what no page lets run."""

import re
import time
from html import unescape

import pytest

PAGES = ("user", "memory", "search", "changes")
ADDRESSES = ["/explore", "/explore/runs", *(f"/explore/{page}?user=ada&id=x" for page in PAGES)]


def test_without_a_key_every_page_leads_to_the_login_and_back(visit, shown):
    for address in ADDRESSES:
        page = visit().get(address)
        assert (page.status, page.text) == (303, ""), address
        assert page.headers["location"].startswith("/explore/login")
    login = visit().get(visit().get("/explore/user?user=ada").headers["location"])
    assert login.status == 200
    next_ = unescape(re.search(r'name="next" value="([^"]*)"', login.text)[1])
    done = visit().post("/explore/login", {"key": shown.key, "next": next_})
    assert (done.status, done.headers["location"]) == (303, "/explore/user?user=ada")


def test_the_cookie_is_for_the_pages_alone(visit, shown):
    visitor = visit()
    page = visitor.post("/explore/login", {"key": shown.key})
    cookie = page.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/explore;"))
    assert "secure" not in cookie
    assert visitor.get("/explore").status == 200
    assert visitor.get("/memories?user_id=ada").status == 401
    assert visitor.get("/users").status == 401
    tls = visit().post("/explore/login", {"key": shown.key}, X_Forwarded_Proto="https")
    assert "secure" in tls.headers["set-cookie"].lower()


@pytest.mark.parametrize("key", ["", "x", "lm_0_0", "lm_0_0\r\nX: y", "ü", "a" * 5_000])
def test_a_key_that_opens_nothing_is_refused_at_the_door(visit, key):
    page = visit().post("/explore/login", {"key": key})
    assert page.status == 401
    assert "set-cookie" not in page.headers
    assert 'role="alert"' in page.text


def test_a_revoked_key_is_signed_out(visit, shown):
    key = shown.make_key(scopes=["admin"])
    visitor = visit(key)
    assert visitor.get("/explore").status == 200
    shown.ring.revoke(shown.keys[key])
    time.sleep(1.2)
    page = visitor.get("/explore")
    assert page.status == 303
    assert visitor.cookies == {}
    assert "not valid any more" in visitor.get(page.headers["location"]).words


def test_signing_out_forgets_the_key(admin):
    assert admin.post("/explore/logout").status == 303
    assert admin.cookies == {}
    assert admin.get("/explore").status == 303


def test_no_other_site_signs_anybody_in_or_out(visit, shown, admin):
    for site in ("cross-site", "same-site"):
        page = visit().post("/explore/login", {"key": shown.key}, Sec_Fetch_Site=site)
        assert (page.status, "set-cookie" in page.headers) == (403, False)
        assert admin.post("/explore/logout", Sec_Fetch_Site=site).status == 403


@pytest.mark.parametrize(
    "address", ["https://evil.test/", "//evil.test", "/\\evil.test", "/explore/../users", "/users",
                "javascript:alert(1)", "/explore\r\nX: y", "/explore/login", "/explore.evil.test"],
)  # fmt: skip
def test_a_login_never_leads_away(visit, shown, address):
    page = visit().post("/explore/login", {"key": shown.key, "next": address})
    assert page.headers["location"] in ("/explore", "/explore/../users")
    assert "x" not in page.headers


def test_a_key_of_a_user_opens_that_user_alone(visit, shown):
    visitor = visit(shown.of_ada)
    page = visitor.get("/explore")
    assert page.headers["location"] == "/explore/user?user=ada"
    assert "Runs" not in visitor.get("/explore/user?user=ada").words
    memory = visit(shown.key).of("search", user="José Núñez", q="Tomillo").link("Quiero")
    mine = memory.replace("Jos%C3%A9+N%C3%BA%C3%B1ez", "ada")
    assert mine != memory
    assert (visitor.get(memory).status, visitor.get(mine).status) == (403, 404)
    for name in PAGES:
        refused = [visitor.of(name, user=user, id="x") for user in ("José Núñez", "nobody")]
        assert {page.status for page in refused} == {403}
        assert refused[0].words == refused[1].words
    assert visitor.get("/explore/runs").status == 403


def test_a_tenant_sees_its_own_users_alone(visit, shown):
    visitor, other = visit(shown.acme), visit(shown.key)
    assert "wile" in visitor.get("/explore").words
    assert "ada" not in visitor.get("/explore").words.split()
    assert "wile" not in other.get("/explore").words
    found = visitor.of("search", user="wile", q="vault")
    assert "the vault opens with 4711" in found.words
    memory = found.link("the vault").partition("id=")[2]
    for user in ("wile", "@acme/wile", "ada"):
        for name in PAGES:
            page = other.of(name, user=user, id=memory, q="vault")
            assert "4711" not in page.text, (name, user)
    assert "Nothing is known" in visitor.of("user", user="ada").words
    assert visitor.get("/explore/runs").status == 403
    assert visitor.of("user", user="@/ada").status == 422


def test_a_key_that_reads_names_its_users_itself(visit, shown):
    visitor = visit(shown.reader)
    page = visitor.get("/explore")
    assert 'name="user"' in page.text
    assert "ada" not in page.words.split()
    assert "77 memories" in visitor.of("user", user="ada").words
    assert visitor.get("/explore/runs").status == 403
    writes = visit(shown.make_key(scopes=["write"]))
    assert writes.get("/explore").status == 403


def test_what_users_write_is_never_part_of_a_page(admin, evil, shown):
    user, text = evil
    pages = [admin.of(name, user=user, q="script title") for name in ("user", "search", "changes")]
    memory = next(link for link in pages[0].links if link.startswith("/explore/memory"))
    pages += [admin.get(memory), admin.get("/explore"), admin.of("user", user=user, topic=text)]
    pages += [admin.of("search", user=user, q=text), admin.of("run", id=text)]
    pages.append(admin.get(admin.get("/explore/runs").link("Backfill")))
    pages.append(admin.get("/explore/login?next=" + "%22%3E%3Cscript%3E"))
    for page in pages:
        assert text not in page.text
        assert (page.text.count("<script"), page.text.count("<img")) == (1, 1)
    assert text in unescape(pages[3].text)


def test_no_page_lets_anything_run_but_its_own_script(admin, visit):
    pages = [admin.get(address) for address in ADDRESSES]
    pages += [admin.get("/explore/nothing"), visit().get("/explore/login"), visit().get("/explore")]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:|<script>|https?://", page.text)


def test_what_is_wrong_is_said_on_a_page(admin):
    missing = admin.get("/explore/nothing")
    assert (missing.status, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing here" in missing.words
    assert "x-request-id" in missing.headers
    assert "user: Field required" in admin.get("/explore/user").words
    assert admin.of("memory", user="ada", id="x").status == 404
    assert admin.of("user", user="x" * 300).status == 422


def test_files_of_the_pages_need_no_key_and_are_kept(visit):
    login = visit().get("/explore/login")
    files = [link for link in login.links if "/static/" in link]
    files += re.findall(r'src="([^"]*)"', login.text)
    assert len({link.partition("?")[0] for link in files}) == 3
    for link in files:
        page = visit().get(link)
        assert page.status == 200
        assert "immutable" in page.headers["cache-control"]
    assert visit().get("/explore/static/../door.py").status == 303


def test_without_keys_there_is_no_login(start, visit):
    with start(auth="off") as running:
        visitor = visit(url=running.url)
        assert "Sign out" not in visitor.get("/explore").words
        assert visitor.get("/explore/runs").status == 200
        assert visitor.get("/explore/login").headers["location"] == "/explore"
        page = visitor.get("/explore", Host="evil.test")
        assert (page.status, "answers its own machine only" in page.words) == (403, True)
