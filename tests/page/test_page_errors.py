"""What the page says and keeps when something goes wrong."""

from __future__ import annotations

import re
from typing import Literal

import pytest
from playwright.sync_api import expect

from tests.page.opened_page import Opening, button, complete_reply, send, stop_time, wait
from tests.page.stand_in import KEY, Refusal, StandIn


def test_a_refused_key_is_asked_for_and_the_message_sent_with_the_new_one(opened: Opening, gateway: StandIn) -> None:
    page = opened("key=rk-revoked")
    send(page, "hello")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("does not accept this key")
    dialog.get_by_label("Key").fill("rk-wrong again")
    button(dialog, "Use this key").click()
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
    send(page, "hello")
    button(dialog, "Cancel").click()
    button(page.get_by_role("alert"), "Enter a key").click()
    dialog.get_by_label("Key").fill(KEY)
    button(dialog, "Use this key").click()
    expect(page.get_by_role("article", name="Reply")).to_contain_text("You said: hello")
    assert len(gateway.asked) == 1


def test_a_key_that_does_not_open_this_can_be_changed(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/models"] = [Refusal(403, "this key does not open chat; it has feedback")]
    page = opened()
    send(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("This key does not open chat")
    button(page, "Use another key").click()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Reply")).to_contain_text("You said: hello")


@pytest.mark.parametrize("status", [429, 503])
def test_it_says_when_to_try_again(opened: Opening, gateway: StandIn, status: int) -> None:
    gateway.refusals["/v1/chat/completions"] = [Refusal(status, "not now", retry_after=40)]
    page = opened(clock=True)
    send(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("Try again in 40 seconds.")
    stop_time(page)
    expect(page.get_by_role("button", name=re.compile(r"Try again in \d+ s"))).to_be_disabled()
    page.clock.fast_forward(45_000)
    page.clock.resume()
    button(page, "Try again").click()
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
    send(page, "count")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("one two three")
    gateway.release()
    expect(reply.get_by_role("alert")).to_contain_text(f"This reply is incomplete: {why}.")
    expect(reply).to_contain_text("one two three")
    expect(button(reply, "Thumbs up")).to_have_count(0)
    button(reply, "Try again").click()
    expect(reply).to_contain_text("one two three four five")
    expect(button(reply, "Thumbs up")).to_be_visible()


def test_what_failed_is_no_part_of_the_conversation(opened: Opening, gateway: StandIn) -> None:
    gateway.break_after = 1
    page = opened()
    send(page, "first")
    expect(page.get_by_role("alert")).to_be_visible()
    complete_reply(page, "second")
    expect(page.get_by_text("Not part of the conversation.")).to_be_visible()
    expect(button(page, "Try again")).to_have_count(0)
    assert [turn["content"] for turn in gateway.asked[-1].body["messages"]] == ["second"]


def test_a_message_that_failed_can_be_edited(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/chat/completions"] = [Refusal(400, "a message has 5 characters: at most 4", param="messages")]
    page = opened()
    send(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("A message has 5 characters: at most 4.")
    button(page, "Edit the message").click()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("hello")
    expect(page.get_by_role("article")).to_have_count(0)


def test_a_service_that_is_away_is_said_to_be(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    complete_reply(page)
    gateway.away = True
    page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    send(page, "again")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    button(page, "Try again").click()
    expect(button(page, "Thumbs up")).to_have_count(2)


def test_stop_ends_the_reply_at_the_service_too(opened: Opening, gateway: StandIn) -> None:
    gateway.hold_after = 2
    gateway.replies[None] = "one two three"
    page = opened()
    send(page, "count")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("one two")
    button(page, "Stop").click()
    expect(reply).to_contain_text("Stopped.")
    expect(button(page, "Send")).to_be_visible()
    wait(lambda: gateway.cut == 1, page)
    gateway.release()
    send(page, "go on")
    expect(button(page, "Thumbs up")).to_have_count(1)
    assert [turn["content"] for turn in gateway.asked[-1].body["messages"]] == ["count", "one two", "go on"]
