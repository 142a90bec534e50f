"""Settings of all tests: small, quiet, offline."""

from __future__ import annotations

import faulthandler
import os

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key  # the only way to what is not captured

# Before anything imports the libraries that read them. Ray's actors get them from the cluster's own environment.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A crash of native code says where, also after a Ray cluster in this process has taken the handlers away."""
    faulthandler.enable(item.config.stash[fault_handler_stderr_fd_key])
