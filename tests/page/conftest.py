"""A browser and a stand-in for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.page.opened_page import PATIENCE_MS, Opening, chromium
from tests.page.stand_in import StandIn, stand_in


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For a module: while it is open, Playwright's event loop is the main thread's, and other tests can run none."""
    with chromium() as started:
        yield started


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
