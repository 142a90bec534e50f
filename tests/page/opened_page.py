"""The page in a browser, and what tests of every view do with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Locator, Page, expect, sync_playwright

from tests.page.stand_in import KEY, StandIn

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


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped if there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


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


def send(page: Page, text: str, box: str = "Message") -> None:
    page.get_by_role("textbox", name=box).fill(text)
    page.keyboard.press("Enter")


def complete_reply(page: Page, text: str = "hello") -> Locator:
    """Sends a message; its reply, when it is complete."""
    send(page, text)
    reply = page.get_by_role("article", name="Reply").last
    expect(button(reply, "Thumbs up")).to_be_visible()
    return reply


def button(where: Page | Locator, name: str) -> Locator:
    return where.get_by_role("button", name=name, exact=True)


def wait(condition: Callable[[], object], page: Page) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        page.evaluate("() => null")  # lets the browser's events in
        time.sleep(0.02)


def compared(page: Page, prompt: str = "Why?") -> Locator:
    """Asks for two answers; the round, when both are complete."""
    send(page, prompt, "Prompt")
    expect(page.get_by_text("Which one is better?")).to_be_visible()
    return page.get_by_role("group", name="Two answers")


def stop_time(page: Page) -> None:
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)
