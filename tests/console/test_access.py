"""For everybody: by keyboard alone, on a phone, in the dark, with a screen reader, without motion."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.console.federation import BY_HAND, PASSWORDS

pytestmark = [pytest.mark.rabbitmq, pytest.mark.long]

AXE = Path(__file__).parent / "axe/node_modules/axe-core/axe.min.js"
PLACES = ("overview", "institutions", "staleness", "dead-letters", "versions", "versions/1", "audit")
SUITS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FOUND = """(tags) => axe.run(document, {runOnly: tags}).then(({violations}) =>
    violations.map((each) => `${each.id}: ${each.help}: ${each.nodes.map((node) => node.target).join(" | ")}`))"""
FOCUSED = """() => {
    const at = document.activeElement, ring = getComputedStyle(at);
    const name = at === document.body ? "" : at.innerText?.trim() || at.getAttribute("aria-label") || at.id;
    return [name, ring.outlineStyle, parseFloat(ring.outlineWidth)];
}"""
MOVING = """() =>
    [...document.querySelectorAll("*")].filter((each) => parseFloat(getComputedStyle(each).transitionDuration) > 0).length"""
SCREEN = """() => getComputedStyle(document.body).backgroundColor"""


@pytest.fixture(autouse=True)
def _letters(federation):
    """So that the table of dead letters has a row."""
    federation.bury(*federation.update_by_hand(1), author=BY_HAND, refused="a long reason " * 12)


def open_place(seen, place):
    seen.page.evaluate(f"location.hash = '#{place}'")
    expect(seen.page.locator("#view h1")).to_be_visible()
    seen.page.wait_for_function("() => !document.querySelector('#view').innerText.match(/Asking|Reading/)")
    seen.page.wait_for_timeout(400)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
def test_axe_finds_nothing_on_any_view(visit, dark, phone):
    if not AXE.exists():
        assert not os.environ.get("CI"), "axe-core is not there: setup/axe fetches it"
        pytest.skip("axe-core is not there: setup/axe fetches it")
    # bypass_csp: the checks are a script of the test's own, which the page's policy rightly keeps out
    seen = visit(None, dark=dark, phone=phone, bypass_csp=True)
    seen.context.add_init_script(path=AXE)
    seen.page.goto(seen.url + "/login")
    found = {"login": seen.page.evaluate(FOUND, SUITS)}
    seen.sign_in()
    expect(seen.live).to_have_text("live")
    for place in PLACES:
        open_place(seen, place)
        found[place] = seen.page.evaluate(FOUND, SUITS)
    seen.go("Institutions").page.get_by_role("button", name="Quarantine").first.click()
    found["dialog"] = seen.page.evaluate(FOUND, SUITS)
    assert {place: told for place, told in found.items() if told} == {}


def test_on_a_phone_no_view_is_wider_than_the_screen(visit):
    seen = visit(None, phone=True)
    seen.page.goto(seen.url + "/login")
    wider = {"login": seen.overflow()}
    seen.sign_in()
    expect(seen.live).to_have_text("live")
    for place in PLACES:
        open_place(seen, place)
        wider[place] = seen.overflow()
        seen.picture(f"phone-{place.replace('/', '-')}")
    seen.go("Institutions").page.get_by_role("button", name="Quarantine").first.click()
    wider["dialog"] = seen.overflow()
    assert {place: pixels for place, pixels in wider.items() if pixels > 0} == {}


def test_a_person_without_a_mouse_signs_in_and_finds_a_version(visit):
    seen = visit(None)
    keys, page = seen.page.keyboard, seen.page
    page.goto(seen.url + "/login")
    expect(page.get_by_label("Name")).to_be_focused()
    keys.type("olga")
    keys.press("Tab")
    keys.type(PASSWORDS["olga"])
    keys.press("Enter")
    expect(seen.live).to_have_text("live")
    assert walk(seen, "Versions") > 3
    keys.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Versions")).to_be_focused()
    keys.press("Tab")
    chosen = page.evaluate("document.activeElement.textContent")
    keys.press("Enter")
    expect(page.locator("#version h2")).to_have_text(f"Version {chosen}")
    keys.press("j")
    expect(page.locator("#version h2")).to_have_text(f"Version {int(chosen) - 1}")
    keys.press("k")
    expect(page.locator("#version h2")).to_have_text(f"Version {chosen}")


def test_a_person_without_a_mouse_pauses_the_run_and_lets_it_go_on(visit):
    seen = visit()
    keys = seen.page.keyboard
    walk(seen, "Pause")
    keys.press("Enter")
    expect(seen.dialog().get_by_role("button", name="Cancel")).to_be_focused()
    keys.press("Tab")
    keys.press("Enter")
    expect(seen.notice).to_contain_text("The run is paused")
    expect(seen.page.get_by_role("button", name="Resume")).to_be_visible()
    walk(seen, "Resume")
    keys.press("Enter")
    keys.press("Tab")
    keys.press("Enter")
    expect(seen.notice).to_contain_text("The run goes on")


def walk(seen, name, most=60):
    """Tabs to what has this name; every stop on the way must be seen to have the focus. How many steps it took."""
    for steps in range(1, most):
        seen.page.keyboard.press("Tab")
        told, style, width = seen.page.evaluate(FOCUSED)
        assert told == "" or (style, width >= 2) == ("solid", True), told
        if told == name:
            return steps
    raise AssertionError(f"no way to {name}")


def test_the_help_names_the_keys_and_can_turn_them_off(visit):
    seen = visit()
    seen.page.keyboard.press("?")
    expect(seen.dialog()).to_contain_text("the version before")
    seen.picture("help-dialog", full=False)
    seen.dialog().get_by_label("Use these keys").uncheck()
    seen.dialog().get_by_role("button", name="Close").click()
    seen.page.keyboard.press("i")
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Overview")
    seen.page.reload()
    expect(seen.live).to_have_text("live")
    seen.page.keyboard.press("i")
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Overview")


def test_the_page_is_dark_where_the_system_is_and_the_switch_is_remembered(visit):
    seen = visit(dark=True)
    assert seen.page.evaluate(SCREEN) == "rgb(14, 18, 23)"
    seen.picture("overview-dark")
    switch = seen.page.get_by_role("button", name="Theme: auto")
    switch.click()
    assert seen.page.evaluate(SCREEN) == "rgb(243, 245, 248)"
    seen.page.reload()
    expect(seen.live).to_have_text("live")
    assert seen.page.evaluate(SCREEN) == "rgb(243, 245, 248)"
    expect(seen.page.get_by_role("button", name="Theme: light")).to_be_visible()


def test_nothing_moves_for_whoever_asked_for_less_motion(visit):
    seen = visit(reduced_motion="reduce")
    assert seen.page.evaluate(MOVING) == 0
    assert visit().page.evaluate(MOVING) > 0


def test_every_state_has_a_sign_and_a_word_beside_its_colour(visit):
    seen = visit().go("Institutions")
    badges = seen.page.locator(".badge")
    assert badges.count() > 4
    for badge in badges.all():
        assert badge.inner_text().strip()
        assert badge.locator("svg use").count() == 1
