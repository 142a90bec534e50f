"""The dashboard of the page, and what holds for all of its views."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.opened_page import LONG, MARKUP, SAID, Opening, button, compared, complete_reply, wait
from tests.page.stand_in import KEY, NOTHING_SAID, Refusal, StandIn


def test_the_dashboard_shows_the_figures(opened: Opening, gateway: StandIn) -> None:
    gateway.summary = SAID
    page = opened(f"key={KEY}&dashboard")
    tiles = page.get_by_role("list", name="Counts").get_by_role("listitem")
    shown = [tile.replace("\n", " ") for tile in tiles.all_inner_texts()] if tiles.first.inner_text() else []
    assert shown == [
        "Thumbs 40 30 up, 10 down: 75% up",
        "Ratings 12 mean 4.0 of 5",
        "Comparisons 20 3 ties, 1 both bad",
        "Rankings 2 orders of several replies",
        "Corrections 6 replies that people rewrote",
        "Reports 3 2 untrue, 1 off topic",
        "Annotators 4 different people",
        "Agreement 0.71 fair (Krippendorff's alpha, 17 judged by several)",
    ]
    expect(page.get_by_text("63%, 95% interval 41% to 80%")).to_be_visible()
    expect(page.get_by_text("Not decided yet")).to_be_visible()
    left, width = page.locator(".strip .ends").evaluate("(bar) => [bar.offsetLeft, bar.offsetWidth]")
    whole = page.locator(".strip").evaluate("(strip) => strip.offsetWidth")
    assert left / whole == pytest.approx(0.41, abs=0.01) and width / whole == pytest.approx(0.39, abs=0.01)
    rows = page.get_by_role("region", name="By policy").get_by_role("row").all_inner_texts()
    assert [row.split("\t") for row in rows[1:]] == [
        ["demo-0012", "18", "9", "none", "31"],
        ["feedback-0003", "12", "1", "4.2", "24"],
    ]
    script = "(bars) => bars.map((bar) => ['y', 'height'].map((name) => Number(bar.getAttribute(name))))"
    tops, heights = zip(*page.locator(".days rect").evaluate_all(script), strict=True)
    for lower, upper in ((0, 1), (1, 2), (7, 8)):
        assert tops[upper] + heights[upper] == pytest.approx(tops[lower])
    said = [day[name] for day in SAID["by_day"] for name in ("up", "down", "preferences")]
    assert [height / heights[0] for height in heights] == pytest.approx([count / said[0] for count in said])
    expect(page.locator(".days")).to_contain_text("Nov 23")


def test_the_dashboard_says_when_there_is_nothing(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&dashboard")
    expect(page.get_by_text("Nobody has said anything yet.")).to_be_visible()
    expect(page.get_by_role("list", name="Counts")).to_have_count(0)
    gateway.summary = NOTHING_SAID | {"counts": NOTHING_SAID["counts"] | {"correction": 1}}
    button(page, "Refresh").click()
    expect(page.get_by_text("not enough judgements")).to_be_visible()
    expect(page.get_by_text("No comparison of a canary")).to_be_visible()
    expect(page.get_by_text("No policy has been judged yet.")).to_be_visible()
    expect(page.get_by_text("No thumbs and no comparisons yet.")).to_be_visible()
    gateway.refusals["/v1/feedback/summary"] = [Refusal(500, "something went wrong")]
    button(page, "Refresh").click()
    button(page.get_by_role("alert"), "Try again").click()
    expect(page.get_by_text("not enough judgements")).to_be_visible()


def test_the_key_leaves_the_address_and_stays_in_the_tab(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&arena")
    expect(page.get_by_role("heading", name="Arena")).to_be_visible()
    assert page.url == f"{gateway.address}/#arena"
    compared(page)
    page.get_by_role("link", name="Chat").click()
    complete_reply(page)
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert not [path for path in gateway.paths if KEY in path]
    assert KEY not in page.content()
    page.go_back()
    assert KEY not in page.url
    page.evaluate("location.hash = '#key=rk-another&chat'")
    page.wait_for_url("**/#chat")
    assert page.evaluate("Object.values(sessionStorage)") == ["rk-another"]


def test_the_content_security_policy_holds(opened: Opening, gateway: StandIn) -> None:
    """In the end something forbidden is done, which must be noticed."""
    gateway.summary = SAID
    page = opened()
    page.evaluate("() => { window.seen = 0; addEventListener('securitypolicyviolation', () => { seen += 1; }); }")
    for path in ("/", "/page/app.js"):
        headers = page.request.get(gateway.address + path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    button(complete_reply(page, MARKUP), "Report").click()
    page.evaluate("location.hash = '#arena'")
    compared(page)
    page.keyboard.press("a")
    page.evaluate("location.hash = '#dashboard'")
    expect(page.get_by_role("list", name="Counts")).to_be_visible()
    assert page.evaluate("seen") == 0 and not opened.complaints
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    wait(lambda: page.evaluate("seen") == 1 and opened.complaints, page)
    assert "Content Security Policy" in opened.complaints.pop()


def test_views_are_reached_by_keyboard(opened: Opening) -> None:
    page = opened()
    for name in ("Chat", "Arena", "Dashboard"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name=name)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        expect(page.get_by_role("link", name=name)).to_have_attribute("aria-current", "page")
        assert page.url.endswith(f"#{name.lower()}")


def test_every_control_has_a_name(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    reply = complete_reply(page)
    button(reply, "Correct it").click()
    button(reply, "Report").click()
    page.evaluate("location.hash = '#arena'")
    compared(page)
    nameless = page.locator("button, input, textarea, select").evaluate_all(
        """(controls) => controls.filter((control) => !(control.getAttribute("aria-label")
            || control.textContent.trim() && control.tagName === "BUTTON"
            || control.labels?.[0]?.textContent.trim())).map((control) => control.outerHTML)"""
    )
    assert nameless == []
    for article in page.get_by_role("article").all():
        assert article.locator("[aria-live=polite]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened: Opening, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for what surrounds a control."""
    page = opened(color_scheme=scheme)
    script = """(names) => {
        const style = getComputedStyle(document.documentElement);
        return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    }"""
    names = ["page", "card", "mine", "ink", "soft", "accent", "on-accent", "edge"]
    names += [name + ground for name in ("good", "bad", "warn") for ground in ("", "-bg")]
    colour = page.evaluate(script, names)
    texts = [("ink", ground) for ground in ("page", "card", "mine")] + [("soft", ground) for ground in ("page", "card")]
    texts += [("soft", "mine"), ("accent", "page"), ("accent", "card"), ("on-accent", "accent"), ("bad", "card")]
    texts += [(name, f"{name}-bg") for name in ("good", "bad", "warn")]
    low = [pair for pair in texts if _contrast(*(colour[name] for name in pair)) < 4.5]
    low += [pair for pair in (("edge", "card"), ("edge", "page")) if _contrast(*(colour[name] for name in pair)) < 3]
    assert not low


def _contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_a_narrow_screen_does_not_scroll_sideways(opened: Opening, gateway: StandIn) -> None:
    gateway.summary = SAID | {"policies": [SAID["policies"][0] | {"version": LONG, "replies_rated": 10**15}]}
    gateway.refusals["/v1/feedback"] = [Refusal(500, LONG)]
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    reply = complete_reply(page, LONG)
    button(reply, "Thumbs up").click()
    expect(reply.get_by_role("alert").first).to_be_visible()
    button(reply, "Correct it").click()
    button(reply, "Report").click()
    widths = [_scroll_width(page)]
    page.evaluate("location.hash = '#arena'")
    compared(page, LONG)
    page.get_by_role("button", name="Tie").click()
    widths.append(_scroll_width(page))
    page.evaluate("location.hash = '#dashboard'")
    expect(page.get_by_role("list", name="Counts")).to_be_visible()
    widths.append(_scroll_width(page))
    assert widths == [360, 360, 360]


def _scroll_width(page: Page) -> int:
    return int(page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"))
