"""The chat of the page, and how it reads a stream."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.opened_page import MARKUP, Opening, button, complete_reply, send, wait
from tests.page.stand_in import Refusal, StandIn


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


def test_a_message_streams_in_and_is_judged(opened: Opening, gateway: StandIn) -> None:
    gateway.hold_after = 3
    gateway.replies[None] = "Paris is the capital of France."
    page = opened()
    send(page, "What is the capital of France?")
    reply = page.get_by_role("article", name="Reply")
    expect(reply).to_contain_text("Paris is the")
    expect(reply).not_to_contain_text("capital")
    expect(button(reply, "Thumbs up")).to_have_count(0)
    gateway.release()
    expect(reply).to_contain_text("Paris is the capital of France.")
    button(reply, "Thumbs up").click()
    expect(reply.get_by_role("status")).to_have_text("Thumb saved.")
    expect(button(reply, "Thumbs up")).to_have_attribute("aria-pressed", "true")
    for name in ("Thumbs up", "Thumbs down"):
        button(reply, name).click(force=True)
    button(reply, "Rate 4 of 5").click()
    expect(reply.get_by_role("status")).to_have_text("Rating saved.")

    (asked,) = gateway.asked
    assert asked.body["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert asked.body["model"] == "policy" and asked.body["stream"] is True and asked.body["temperature"] == 0.7
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
    expect(button(page, "Thumbs up")).to_have_count(1)
    send(page, "three")
    expect(button(page, "Thumbs up")).to_have_count(2)
    button(page, "New conversation").click()
    expect(page.get_by_role("article")).to_have_count(0)
    complete_reply(page, "four")
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
    wait(lambda: page.evaluate("scrollY + innerHeight > document.documentElement.scrollHeight - 2"), page)
    gateway.released.clear()
    _reply_in_two_parts(page, gateway, "two", scroll_to=100)
    assert page.evaluate("scrollY") == 100


def _reply_in_two_parts(page: Page, gateway: StandIn, text: str, scroll_to: int | None = None) -> None:
    send(page, text)
    expect(page.get_by_role("article", name="Reply").last).to_contain_text("49")
    if scroll_to is not None:
        page.evaluate("(top) => scrollTo({ top })", scroll_to)
    gateway.release()
    expect(button(page.get_by_role("article", name="Reply").last, "Thumbs up")).to_be_attached()


def test_settings_out_of_range_are_not_sent(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("3")
    send(page, "hello")
    expect(page.get_by_role("textbox", name="Message")).to_have_value("hello")
    page.get_by_label("Temperature").fill("0")
    complete_reply(page)
    assert [asked.body["temperature"] for asked in gateway.asked] == [0]


def test_markup_is_text_everywhere(opened: Opening, gateway: StandIn) -> None:
    gateway.replies[None] = f"See {MARKUP}"
    gateway.refusals["/v1/feedback"] = [Refusal(400, f"bad {MARKUP}")]
    page = opened()
    reply = complete_reply(page, MARKUP)
    expect(page.get_by_role("article", name="You")).to_contain_text(MARKUP)
    expect(reply).to_contain_text(f"See {MARKUP}")
    button(reply, "Correct it").click()
    box = reply.get_by_label("What the reply should have been")
    expect(box).to_have_value(f"See {MARKUP}")
    button(reply, "Save correction").click()
    expect(reply.get_by_text("Change the reply first.")).to_be_visible()
    box.fill(f"{MARKUP}\n  better")
    button(reply, "Save correction").click()
    expect(reply.get_by_role("alert").filter(has_text="Bad")).to_contain_text(f"Bad {MARKUP}")
    button(reply, "Try again").click()
    expect(reply.locator(".corrected .text")).to_have_text(f"{MARKUP}\n  better", use_inner_text=True)
    expect(button(reply, "Corrected")).to_be_visible()
    assert page.locator("img").count() == 0
    (given,) = gateway.feedback
    assert (given["kind"], given["value"]) == ("correction", f"{MARKUP}\n  better")


def test_a_report_has_a_reason(opened: Opening, gateway: StandIn) -> None:
    page = opened()
    reply = complete_reply(page)
    button(reply, "Report").click()
    reply.get_by_label("What is wrong with it").select_option("Off topic")
    reply.get_by_label("More about it").fill("It is about cats.")
    button(reply, "Send report").click()
    expect(button(reply, "Reported: off topic")).to_be_visible()
    (given,) = gateway.feedback
    assert (given["kind"], given["value"], given["comment"]) == ("flag", "off_topic", "It is about cats.")


def test_a_reply_that_is_not_kept_any_more_cannot_be_judged(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/feedback"] = [Refusal(404, "there is no reply 'x'", param="reply_id")]
    reply = complete_reply(opened())
    button(reply, "Thumbs down").click()
    expect(reply.get_by_role("alert")).to_contain_text("does not have this reply any more")
    expect(button(reply, "Thumbs down")).to_have_attribute("aria-pressed", "false")
    assert not gateway.feedback


def test_feedback_that_failed_is_sent_again_as_the_same(opened: Opening, gateway: StandIn) -> None:
    """The answer may have got lost after it was stored: the key tells the service so."""
    page = opened()
    reply = complete_reply(page)
    sent: list[dict[str, Any]] = []

    def lost(route: Any) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(status=503, json={"error": {"message": "the writer is away"}})

    gateway.refused.add(503)
    page.route("**/v1/feedback", lost, times=1)
    button(reply, "Thumbs down").click()
    expect(reply.get_by_role("alert")).to_contain_text("the writer is away")
    expect(button(reply, "Thumbs up")).to_be_enabled()
    button(reply, "Try again").click()
    expect(reply.get_by_role("status")).to_have_text("Thumb saved.")
    assert gateway.feedback == sent
