"""The blind comparison of the page."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.page.opened_page import Opening, button, compared, send, stop_time, wait
from tests.page.stand_in import KEY, Refusal, StandIn


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
    answers = compared(page).get_by_role("article")
    shown = ["the words of a", "the words of b"][:: 1 if random < 0.5 else -1]
    expect(answers.nth(0)).to_contain_text(shown[0])
    expect(answers.nth(1)).to_contain_text(shown[1])
    stop_time(page)
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
    arena = compared(page)
    stop_time(page)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("Sent in 5 s")).to_be_visible()
    page.clock.fast_forward(2_000)
    expect(page.get_by_text("Sent in 3 s")).to_be_visible()
    page.keyboard.press("u")
    expect(page.get_by_text("Your vote")).to_have_count(0)
    page.clock.fast_forward(20_000)
    arena.get_by_role("button", name="Tie").click()
    button(arena, "Undo").click()
    page.clock.fast_forward(20_000)
    arena.get_by_role("button", name="Both bad").click()
    page.clock.fast_forward(20_000)
    expect(page.get_by_text("Saved.")).to_be_visible()
    assert [vote["choice"] for vote in gateway.preferences] == ["both_bad"]


def test_the_next_prompt_sends_the_vote(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&arena", clock=True)
    compared(page, "one")
    stop_time(page)
    page.keyboard.press("t")
    page.keyboard.press("Enter")  # on "Another prompt"
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Which one is better?")).to_be_visible()
    wait(lambda: gateway.preferences, page)
    page.keyboard.press("u")
    page.keyboard.press("b")
    page.clock.fast_forward(6_000)
    wait(lambda: len(gateway.preferences) == 2, page)
    assert [vote["choice"] for vote in gateway.preferences] == ["tie", "b"]
    assert len({asked.conversation for asked in gateway.asked}) == 2


def test_keys_are_text_while_one_types(opened: Opening, gateway: StandIn) -> None:
    page = opened(f"key={KEY}&arena", clock=True)
    compared(page)
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
    send(page, "Why?", "Prompt")
    expect(page.get_by_role("article").nth(1)).to_contain_text("You")
    for name in ("A is better", "B is better", "Tie", "Both bad"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    page.keyboard.press("a")
    expect(page.get_by_text("Your vote")).to_have_count(0)
    button(page, "Stop").click()
    expect(page.get_by_text("Only answers that are both complete can be compared.")).to_be_visible()
    gateway.release()
    for _ in range(2):
        button(page, "Answer again").first.click()
        expect(button(page, "Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="A is better")).to_be_enabled()
    assert [asked.side for asked in gateway.asked] == ["a", "b", "a", "b"]
    assert len({asked.conversation for asked in gateway.asked}) == 1


def test_a_vote_that_is_not_saved_stays_until_it_is(opened: Opening, gateway: StandIn) -> None:
    gateway.refusals["/v1/preferences"] = [Refusal(503, "the writer is away")]
    page = opened(f"key={KEY}&arena")
    compared(page, "one")
    page.keyboard.press("n")
    page.get_by_role("textbox", name="Prompt").click()
    compared(page, "two")
    expect(page.get_by_text("Your vote (both bad) is not saved.")).to_be_visible()
    button(page, "Try again").click()
    expect(page.get_by_text("Your vote: both bad. Saved.")).to_be_visible()
    compared(page, "three")
    expect(page.get_by_text("Your vote")).to_have_count(0)
    assert [vote["choice"] for vote in gateway.preferences] == ["both_bad"]
