"""A browser and a stand-in for the tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.page.opened_page import PATIENCE_MS, Opening
from tests.page.stand_in import StandIn, stand_in

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For a module: while it is open, Playwright's event loop is the main thread's, and other tests can run none."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def _listening() -> Iterator[StandIn]:
    with stand_in() as state:
        yield state


@pytest.fixture
def gateway(_listening: StandIn) -> StandIn:
    _listening.reset()
    return _listening


@pytest.fixture
def opened(browser: Browser, gateway: StandIn) -> Iterator[Opening]:
    expect.set_options(timeout=PATIENCE_MS)
    opening = Opening(browser, gateway)
    yield opening
    opening.close()
    assert not opening.complaints
