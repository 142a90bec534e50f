"""Settings of all tests: small, quiet, offline."""

from __future__ import annotations

import os

# Before anything imports the libraries that read them. Ray's actors get them from the cluster's own environment.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
