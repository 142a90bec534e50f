"""The page of the service in a real browser, against a stand-in for the gateway."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Locator, Page, expect, sync_playwright

from tests.serving_page import HEADERS, KEY, NOTHING_SAID, Refusal, StandIn, stand_in

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE_MS = 60_000
MARKUP = "<img src=x onerror=alert(1)>"
LONG = "extraordinarily" * 30
SAID: dict[str, Any] = {
    "counts": {
        "thumb": {"up": 30, "down": 10},
        "rating": {"1": 0, "2": 1, "3": 2, "4": 5, "5": 4},
        "correction": 6,
        "flag": {"untrue": 2, "off_topic": 1},
        "preference": {"a": 9, "b": 7, "tie": 3, "both_bad": 1},
        "ranking": 2,
    },
    "annotators": 4,
    "agreement": {"alpha": 0.714, "items": 17},
    "canary_vs_stable": {"wins": 12.5, "comparisons": 20, "rate": 0.625, "ci95": [0.41, 0.8]},
    "by_day": [
        {"day": "2026-11-21", "up": 6, "down": 2, "preferences": 5},
        {"day": "2026-11-22", "up": 8, "down": 5, "preferences": 2},
        {"day": "2026-11-24", "up": 16, "down": 3, "preferences": 15},
    ],
    "policies": [
        {"version": "demo-0012", "thumbs_up": 18, "thumbs_down": 9, "mean_rating": None, "replies_rated": 31},
        {"version": "feedback-0003", "thumbs_up": 12, "thumbs_down": 1, "mean_rating": 4.2, "replies_rated": 24},
    ],
}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def _listening() -> Iterator[StandIn]:
    with stand_in() as state:
        yield state


@pytest.fixture
def gateway(_listening: StandIn) -> StandIn:
    _listening.reset()
    return _listening


class Opening:
    """Opens the page, and keeps what any opened page complained of, but for errors that it was sent."""

    def __init__(self, browser: Browser, gateway: StandIn) -> None:
        self.complaints: list[str] = []
        self._browser, self._gateway = browser, gateway
        self._contexts: list[BrowserContext] = []

    def __call__(self, fragment: str = f"key={KEY}", *, random: float = 0.1, clock: bool = False, **looks: Any) -> Page:
        context = self._browser.new_context(**looks)
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(f"Math.random = () => {random};")
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._asked)
        if clock:
            page.clock.install()
        page.goto(f"{self._gateway.address}/#{fragment}")
        return page

    def close(self) -> None:
        """All of them."""
        for context in self._contexts:
            context.close()

    def _heard(self, message: ConsoleMessage) -> None:
        expected = any(f"status of {status} " in message.text for status in self._gateway.refused)
        expected |= "net::ERR_" in message.text and self._gateway.away
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(message.text)

    def _asked(self, dialog: Dialog) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def opened(browser: Browser, gateway: StandIn) -> Iterator[Opening]:
    expect.set_options(timeout=PATIENCE_MS)
    opening = Opening(browser, gateway)
    yield opening
    opening.close()
    assert not opening.complaints


def _send(page: Page, text: str, box: str = "Message") -> None:
    page.get_by_role("textbox", name=box).fill(text)
    page.keyboard.press("Enter")


def _reply(page: Page, text: str = "hello") -> Locator:
    """Sends a message; its reply, when it is complete."""
    _send(page, text)
    reply = page.get_by_role("article", name="Reply").last
    expect(_button(reply, "Thumbs up")).to_be_visible()
    return reply


def _button(where: Page | Locator, name: str) -> Locator:
    return where.get_by_role("button", name=name, exact=True)


def _wait(condition: Callable[[], object], page: Page) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        page.evaluate("() => null")  # lets the browser's events in
        time.sleep(0.02)


def _compared(page: Page, prompt: str = "Why?") -> Locator:
    """Asks for two answers; the round, when both are complete."""
    _send(page, prompt, "Prompt")
    expect(page.get_by_text("Which one is better?")).to_be_visible()
    return page.get_by_role("group", name="Two answers")


def _stop_time(page: Page) -> None:
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)


# Server-sent events


@pytest.mark.parametrize(
    ("pieces", "data"),
    [
        (["data: one\n\ndata: two\n\n"], ["one", "two"]),
        (["da", "ta: o", "ne", "\n", "\n"], ["one"]),
        (["data: one\r\n\r\ndata: two\r\n\r\n"], ["one", "two"]),
        (["data: one\r", "\n\r", "\ndata: two\r\n\r\n"], ["one", "two"]),
        (["data: first\ndata: second\n\n"], ["first\nsecond"]),
        (["data: first\r", "\ndata: second\r\n\r\n"], ["first\nsecond"]),
        ([": a comment\n\nevent: x\nid: 1\ndata:tight\n\n"], ["tight"]),
        (['data: {"error": {"message": "no"}}\n\ndata: [DONE]\n\n'], ['{"error": {"message": "no"}}', "[DONE]"]),
        (["data: not complete\n"], []),
    ],
)  # fmt: skip
def test_events_are_read_however_they_are_cut(opened: Opening, pieces: list[str], data: list[str]) -> None:
    script = """async (pieces) => {
        const { SseParser } = await import("/page/sse.js");
        const parser = new SseParser();
        return pieces.flatMap((piece) => parser.push(piece));
    }"""
    assert opened().evaluate(script, pieces) == data


def test_a_character_that_is_cut_between_two_chunks_is_whole(opened: Opening) -> None:
    script = """async () => {
        const { dataOf } = await import("/page/sse.js");
        const bytes = new TextEncoder().encode("data: Grüße 🙂\\n\\ndata: [DONE]\\n\\n");
        const body = new ReadableStream({ start(stream) {
            for (const byte of bytes) stream.enqueue(new Uint8Array([byte]));
            stream.close();
        } });
        const found = [];
        for await (const data of dataOf(body)) found.push(data);
        return found;
    }"""
    assert opened().evaluate(script) == ["Grüße 🙂", "[DONE]"]


# Chat


def test_a_message_streams_in_and_is_judged(opened: Opening, gateway: StandIn) -> None:
    gateway.hold_after = 3
    gateway.replies[None] = "Paris is the capital of France."
    page = opened()
    _send(page, "What is the capital of France?")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("Paris is the")
    expect(reply).not_to_contain_text("capital")
    expect(_button(reply, "Thumbs up")).to_have_count(0)
    gateway.release()
    expect(reply).to_contain_text("Paris is the capital of France.")
    _button(reply, "Thumbs up").click()
    expect(reply.get_by_role("status")).to_have_text("Thumb saved.")
    expect(_button(reply, "Thumbs up")).to_have_attribute("aria-pressed", "true")
    for name in ("Thumbs up", "Thumbs down"):
        _button(reply, name).click(force=True)
    _button(reply, "Rate 4 of 5").click()
    expect(reply.get_by_role("status")).to_have_text("Rating saved.")

    (asked,) = gateway.asked
    assert asked.body["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert asked.body["model"] == "policy" and asked.body["stream"] is True and asked.body["temperature"] == 1
    assert asked.side is None and re.fullmatch("[0-9a-f]{32}", asked.conversation or "")
    thumb, rating = gateway.feedback
    assert re.fullmatch("chatcmpl-stable-[0-9a-f]{32}", thumb["reply_id"])
    assert (thumb["kind"], thumb["value"]) == ("thumb", "up")
    assert (rating["kind"], rating["value"]) == ("rating", 4)
    assert thumb["reply_id"] == rating["reply_id"] and thumb["idempotency_key"] != rating["idempotency_key"]


def test_a_conversation_goes_on_and_a_new_one_is_another(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    page.get_by_text("Settings").click()
    page.get_by_label("Longest reply").fill("64")
    page.get_by_label("Temperature").fill("0.5")
    message = page.get_by_role("textbox", name="Message")
    message.fill("one")
    message.press("Shift+Enter")
    message.press_sequentially("two")
    message.press("Enter")
    expect(_button(page, "Thumbs up")).to_have_count(1)
    _send(page, "three")
    expect(_button(page, "Thumbs up")).to_have_count(2)
    _button(page, "New conversation").click()
    expect(page.get_by_role("article")).to_have_count(0)
    _reply(page, "four")
    first, second, third = gateway.asked
    assert [turn["content"] for turn in second.body["messages"]] == ["one\ntwo", "You said: one\ntwo", "three"]
    assert [turn["role"] for turn in second.body["messages"]] == ["user", "assistant", "user"]
    assert third.body["messages"] == [{"role": "user", "content": "four"}]
    assert first.conversation == second.conversation != third.conversation
    assert (second.body["max_tokens"], second.body["temperature"]) == (64, 0.5)


def test_a_long_reply_is_followed_unless_the_reader_scrolled_away(opened: Opening, gateway: StandIn) -> None:
    gateway.hold_after = 50
    gateway.replies[None] = "\n ".join(map(str, range(100)))
    page = opened(viewport={"width": 800, "height": 500})
    _reply_in_two_parts(page, gateway, "one")
    _wait(lambda: page.evaluate("scrollY + innerHeight > document.documentElement.scrollHeight - 2"), page)
    gateway.released.clear()
    _reply_in_two_parts(page, gateway, "two", scroll_to=100)
    assert page.evaluate("scrollY") == 100


def _reply_in_two_parts(page: Page, gateway: StandIn, text: str, scroll_to: int | None = None) -> None:
    _send(page, text)
    expect(page.get_by_role("article", name="Reply").last).to_contain_text("49")
    if scroll_to is not None:
        page.evaluate("(top) => scrollTo({ top })", scroll_to)
    gateway.release()
    expect(_button(page.get_by_role("article", name="Reply").last, "Thumbs up")).to_be_attached()


def test_settings_out_of_range_are_not_sent(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("3")
    _send(page, "hello")
    expect(page.get_by_role("textbox", name="Message")).to_have_value("hello")
    page.get_by_label("Temperature").fill("0")
    _reply(page)
    assert [asked.body["temperature"] for asked in gateway.asked] == [0]


def test_markup_is_text_everywhere(opened: Opening, gateway: StandIn) -> None:
    gateway.replies[None] = f"See {MARKUP}"
    gateway.refusals["/v1/feedback"] = [Refusal(400, f"bad {MARKUP}")]
    page = opened()
    reply = _reply(page, MARKUP)
    expect(page.get_by_role("article", name="You")).to_contain_text(MARKUP)
    expect(reply).to_contain_text(f"See {MARKUP}")
    _button(reply, "Correct it").click()
    box = reply.get_by_label("What the reply should have been")
    expect(box).to_have_value(f"See {MARKUP}")
    _button(reply, "Save correction").click()
    expect(reply.get_by_text("Change the reply first.")).to_be_visible()
    box.fill(f"{MARKUP}\n  better")
    _button(reply, "Save correction").click()
    expect(reply.get_by_role("alert").filter(has_text="Bad")).to_contain_text(f"Bad {MARKUP}")
    _button(reply, "Try again").click()
    expect(reply.locator(".corrected .text")).to_have_text(f"{MARKUP}\n  better", use_inner_text=True)
    expect(_button(reply, "Corrected")).to_be_visible()
    assert page.locator("img").count() == 0
    (given,) = gateway.feedback
    assert (given["kind"], given["value"]) == ("correction", f"{MARKUP}\n  better")


def test_a_report_has_a_reason(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    reply = _reply(page)
    _button(reply, "Report").click()
    reply.get_by_label("What is wrong with it").select_option("Off topic")
    reply.get_by_label("More about it").fill("It is about cats.")
    _button(reply, "Send report").click()
    expect(_button(reply, "Reported: off topic")).to_be_visible()
    (given,) = gateway.feedback
    assert (given["kind"], given["value"], given["comment"]) == ("flag", "off_topic", "It is about cats.")


def test_a_reply_that_is_not_kept_any_more_cannot_be_judged(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/feedback"] = [Refusal(404, "there is no reply 'x'", param="reply_id")]
    reply = _reply(opened())
    _button(reply, "Thumbs down").click()
    expect(reply.get_by_role("alert")).to_contain_text("does not have this reply any more")
    expect(_button(reply, "Thumbs down")).to_have_attribute("aria-pressed", "false")
    assert not gateway.feedback


def test_feedback_that_failed_is_sent_again_as_the_same(opened: Opening, gateway: StandIn) -> None:
    """The answer may have got lost after it was stored: the key tells the service so."""
    page = opened()
    reply = _reply(page)
    sent: list[dict[str, Any]] = []

    def lost(route: Any) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(status=503, json={"error": {"message": "the writer is away"}})

    gateway.refused.add(503)
    page.route("**/v1/feedback", lost, times=1)
    _button(reply, "Thumbs down").click()
    expect(reply.get_by_role("alert")).to_contain_text("the writer is away")
    expect(_button(reply, "Thumbs up")).to_be_enabled()
    _button(reply, "Try again").click()
    expect(reply.get_by_role("status")).to_have_text("Thumb saved.")
    assert gateway.feedback == sent


# Errors


def test_a_refused_key_is_asked_for_and_the_message_sent_with_the_new_one(opened: Opening, gateway: StandIn) -> None:
    page = opened("key=rk-revoked")
    _send(page, "hello")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("does not accept this key")
    dialog.get_by_label("Key").fill("rk-wrong again")
    _button(dialog, "Use this key").click()
    expect(dialog).to_contain_text("no spaces")
    dialog.get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Reply")).to_contain_text("You said: hello")
    expect(dialog).to_be_hidden()
    assert [asked.key for asked in gateway.asked] == [KEY]


def test_without_a_key_it_asks_and_says_what_to_do(opened: Opening, gateway: StandIn) -> None:
    page = opened("chat")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    _send(page, "hello")
    _button(dialog, "Cancel").click()
    _button(page.get_by_role("alert"), "Enter a key").click()
    dialog.get_by_label("Key").fill(KEY)
    _button(dialog, "Use this key").click()
    expect(page.get_by_role("article", name="Reply")).to_contain_text("You said: hello")
    assert len(gateway.asked) == 1


def test_a_key_that_does_not_open_this_can_be_changed(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/models"] = [Refusal(403, "this key does not open chat; it has feedback")]
    page = opened()
    _send(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("This key does not open chat")
    _button(page, "Use another key").click()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Reply")).to_contain_text("You said: hello")


@pytest.mark.parametrize("status", [429, 503])
def test_it_says_when_to_try_again(opened: Opening, gateway: StandIn, status: int) -> None:
    gateway.refusals["/v1/chat/completions"] = [Refusal(status, "not now", retry_after=40)]
    page = opened(clock=True)
    _send(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("Try again in 40 seconds.")
    _stop_time(page)
    expect(page.get_by_role("button", name=re.compile(r"Try again in \d+ s"))).to_be_disabled()
    page.clock.fast_forward(45_000)
    page.clock.resume()
    _button(page, "Try again").click()
    expect(page.get_by_role("article", name="Reply")).to_contain_text("You said: hello")
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("event", "the engine failed in the middle of a reply"),
        ("end", "the service stopped in the middle of it"),
        ("cut", "the connection broke off"),
    ],
)
def test_a_broken_stream_keeps_what_came(
    opened: Opening, gateway: StandIn, how: Literal["event", "end", "cut"], why: str
) -> None:
    gateway.hold_after, gateway.break_after, gateway.break_how, gateway.away = 3, 3, how, how == "cut"
    gateway.replies[None] = "one two three four five"
    page = opened()
    _send(page, "count")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("one two three")
    gateway.release()
    expect(reply.get_by_role("alert")).to_contain_text(f"This reply is incomplete: {why}.")
    expect(reply).to_contain_text("one two three")
    expect(_button(reply, "Thumbs up")).to_have_count(0)
    _button(reply, "Try again").click()
    expect(reply).to_contain_text("one two three four five")
    expect(_button(reply, "Thumbs up")).to_be_visible()


def test_what_failed_is_no_part_of_the_conversation(opened: Opening, gateway: StandIn) -> None:
    gateway.break_after = 1
    page = opened()
    _send(page, "first")
    expect(page.get_by_role("alert")).to_be_visible()
    _reply(page, "second")
    expect(page.get_by_text("Not part of the conversation.")).to_be_visible()
    expect(_button(page, "Try again")).to_have_count(0)
    assert [turn["content"] for turn in gateway.asked[-1].body["messages"]] == ["second"]


def test_a_message_that_failed_can_be_edited(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/chat/completions"] = [Refusal(400, "a message has 5 characters: at most 4", param="messages")]
    page = opened()
    _send(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("A message has 5 characters: at most 4.")
    _button(page, "Edit the message").click()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("hello")
    expect(page.get_by_role("article")).to_have_count(0)


def test_a_service_that_is_away_is_said_to_be(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    _reply(page)
    gateway.away = True
    page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    _send(page, "again")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    _button(page, "Try again").click()
    expect(_button(page, "Thumbs up")).to_have_count(2)


def test_stop_ends_the_reply_at_the_service_too(opened: Opening, gateway: StandIn) -> None:
    gateway.hold_after = 2
    gateway.replies[None] = "one two three"
    page = opened()
    _send(page, "count")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("one two")
    _button(page, "Stop").click()
    expect(reply).to_contain_text("Stopped.")
    expect(_button(page, "Send")).to_be_visible()
    _wait(lambda: gateway.cut == 1, page)
    gateway.release()
    _send(page, "go on")
    expect(_button(page, "Thumbs up")).to_have_count(1)
    assert [turn["content"] for turn in gateway.asked[-1].body["messages"]] == ["count", "one two", "go on"]


# Arena


@pytest.mark.parametrize(
    ("random", "key", "choice"),
    [
        (0.1, "ArrowLeft", "a"), (0.9, "ArrowLeft", "b"), (0.1, "ArrowRight", "b"), (0.9, "ArrowRight", "a"),
        (0.1, "a", "a"), (0.9, "a", "b"), (0.1, "b", "b"), (0.9, "b", "a"), (0.9, "t", "tie"), (0.9, "n", "both_bad"),
    ],
)  # fmt: skip
def test_a_vote_by_key_names_the_side_that_was_shown_there(
    opened: Opening, gateway: StandIn, random: float, key: str, choice: str
) -> None:
    gateway.replies |= {"a": "the words of a", "b": "the words of b"}
    page = opened(f"key={KEY}&arena", random=random, clock=True)
    answers = _compared(page).get_by_role("article")
    shown = ["the words of a", "the words of b"][:: 1 if random < 0.5 else -1]
    expect(answers.nth(0)).to_contain_text(shown[0])
    expect(answers.nth(1)).to_contain_text(shown[1])
    _stop_time(page)
    page.keyboard.press(key)
    expect(page.get_by_text("Your vote")).to_be_visible()
    assert not gateway.preferences
    page.clock.fast_forward(6_000)
    expect(page.get_by_text("Saved.")).to_be_visible()
    (vote,) = gateway.preferences
    assert [reply_id.split("-")[1] for reply_id in vote["reply_ids"]] == ["a", "b"]
    assert vote["choice"] == choice and vote["idempotency_key"]
    sides = {asked.side: asked for asked in gateway.asked}
    assert set(sides) == {"a", "b"} and sides["a"].conversation == sides["b"].conversation
    assert sides["a"].body == sides["b"].body


def test_a_vote_that_is_undone_is_not_sent(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&arena", clock=True)
    arena = _compared(page)
    _stop_time(page)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("Sent in 5 s")).to_be_visible()
    page.clock.fast_forward(2_000)
    expect(page.get_by_text("Sent in 3 s")).to_be_visible()
    page.keyboard.press("u")
    expect(page.get_by_text("Your vote")).to_have_count(0)
    page.clock.fast_forward(20_000)
    arena.get_by_role("button", name="Tie").click()
    _button(arena, "Undo").click()
    page.clock.fast_forward(20_000)
    arena.get_by_role("button", name="Both bad").click()
    page.clock.fast_forward(20_000)
    expect(page.get_by_text("Saved.")).to_be_visible()
    assert [vote["choice"] for vote in gateway.preferences] == ["both_bad"]


def test_the_next_prompt_sends_the_vote(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&arena", clock=True)
    _compared(page, "one")
    _stop_time(page)
    page.keyboard.press("t")
    page.keyboard.press("Enter")  # on "Another prompt"
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Which one is better?")).to_be_visible()
    _wait(lambda: gateway.preferences, page)
    page.keyboard.press("u")
    page.keyboard.press("b")
    page.clock.fast_forward(6_000)
    _wait(lambda: len(gateway.preferences) == 2, page)
    assert [vote["choice"] for vote in gateway.preferences] == ["tie", "b"]
    assert len({asked.conversation for asked in gateway.asked}) == 2


def test_keys_are_text_while_one_types(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&arena", clock=True)
    _compared(page)
    box = page.get_by_role("textbox", name="Prompt")
    box.click()
    page.keyboard.type("a bat on the nun")
    page.keyboard.press("ArrowLeft")
    expect(box).to_have_value("a bat on the nun")
    page.clock.fast_forward(20_000)
    expect(page.get_by_text("Your vote")).to_have_count(0)
    box.evaluate("(box) => box.blur()")
    page.keyboard.press("Control+b")
    expect(page.get_by_text("Your vote")).to_have_count(0)
    page.keyboard.press("b")
    expect(page.get_by_text("Your vote: B is better.")).to_be_visible()


def test_there_is_no_vote_before_both_answers_are_complete(opened: Opening, gateway: StandIn) -> None:
    gateway.hold_after = 1
    page = opened(f"key={KEY}&arena")
    _send(page, "Why?", "Prompt")
    expect(page.get_by_role("article").nth(1)).to_contain_text("You")
    for name in ("A is better", "B is better", "Tie", "Both bad"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    page.keyboard.press("a")
    expect(page.get_by_text("Your vote")).to_have_count(0)
    _button(page, "Stop").click()
    expect(page.get_by_text("Only answers that are both complete can be compared.")).to_be_visible()
    gateway.release()
    for _ in range(2):
        _button(page, "Answer again").first.click()
        expect(_button(page, "Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="A is better")).to_be_enabled()
    assert [asked.side for asked in gateway.asked] == ["a", "b", "a", "b"]
    assert len({asked.conversation for asked in gateway.asked}) == 1


def test_a_vote_that_is_not_saved_stays_until_it_is(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/preferences"] = [Refusal(503, "the writer is away")]
    page = opened(f"key={KEY}&arena")
    _compared(page, "one")
    page.keyboard.press("n")
    page.get_by_role("textbox", name="Prompt").click()
    _compared(page, "two")
    expect(page.get_by_text("Your vote (both bad) is not saved.")).to_be_visible()
    _button(page, "Try again").click()
    expect(page.get_by_text("Your vote: both bad. Saved.")).to_be_visible()
    _compared(page, "three")
    expect(page.get_by_text("Your vote")).to_have_count(0)
    assert [vote["choice"] for vote in gateway.preferences] == ["both_bad"]


# Dashboard


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
    _button(page, "Refresh").click()
    expect(page.get_by_text("not enough judgements")).to_be_visible()
    expect(page.get_by_text("No comparison of a canary")).to_be_visible()
    expect(page.get_by_text("No policy has been judged yet.")).to_be_visible()
    expect(page.get_by_text("No thumbs and no comparisons yet.")).to_be_visible()
    gateway.refusals["/v1/feedback/summary"] = [Refusal(500, "something went wrong")]
    _button(page, "Refresh").click()
    _button(page.get_by_role("alert"), "Try again").click()
    expect(page.get_by_text("not enough judgements")).to_be_visible()


# The page as a whole


def test_the_key_leaves_the_address_and_stays_in_the_tab(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&arena")
    expect(page.get_by_role("heading", name="Arena")).to_be_visible()
    assert page.url == f"{gateway.address}/#arena"
    _compared(page)
    page.get_by_role("link", name="Chat").click()
    _reply(page)
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
        assert headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    _button(_reply(page, MARKUP), "Report").click()
    page.evaluate("location.hash = '#arena'")
    _compared(page)
    page.keyboard.press("a")
    page.evaluate("location.hash = '#dashboard'")
    expect(page.get_by_role("list", name="Counts")).to_be_visible()
    assert page.evaluate("seen") == 0 and not opened.complaints
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    _wait(lambda: page.evaluate("seen") == 1 and opened.complaints, page)
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
    reply = _reply(page)
    _button(reply, "Correct it").click()
    _button(reply, "Report").click()
    page.evaluate("location.hash = '#arena'")
    _compared(page)
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
    reply = _reply(page, LONG)
    _button(reply, "Thumbs up").click()
    expect(reply.get_by_role("alert").first).to_be_visible()
    _button(reply, "Correct it").click()
    _button(reply, "Report").click()
    widths = [_scroll_width(page)]
    page.evaluate("location.hash = '#arena'")
    _compared(page, LONG)
    page.get_by_role("button", name="Tie").click()
    widths.append(_scroll_width(page))
    page.evaluate("location.hash = '#dashboard'")
    expect(page.get_by_role("list", name="Counts")).to_be_visible()
    widths.append(_scroll_width(page))
    assert widths == [360, 360, 360]


def _scroll_width(page: Page) -> int:
    return int(page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"))
