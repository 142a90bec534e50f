"""The marker of tests that need a GPU."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Called for a conftest below the root as well, whenever it is loaded."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; skipped without one")
