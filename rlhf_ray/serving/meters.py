"""What a gateway counts and times: Ray's metrics, which Prometheus reads from every node of the cluster.

Labels are words of the service alone (routes, statuses, policy versions), never of a client: what a client sends can
make no new series.
"""

from __future__ import annotations

from typing import Literal, Protocol

Counted = Literal["requests", "tokens", "torn_replies", "feedback"]
Timed = Literal["first_token_seconds", "token_seconds", "reply_seconds"]

PREFIX = "rlhf_serve_"
COUNTERS: dict[Counted, tuple[str, tuple[str, ...]]] = {
    "requests": ("Answers, by route and HTTP status.", ("route", "status")),
    "tokens": ("Tokens of complete replies: kind is prompt or completion.", ("policy", "kind")),
    "torn_replies": ("Replies whose engine failed after their beginning was sent.", ("policy",)),
    "feedback": ("What was said about replies and is on the disk, by kind.", ("kind",)),
}
HISTOGRAMS: dict[Timed, tuple[str, tuple[float, ...]]] = {
    "first_token_seconds": (
        "From a request to the first token of its streamed reply.",
        (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2),
    ),
    "token_seconds": (
        "Of a streamed reply after its first token, for each token.",
        (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
    ),
    "reply_seconds": (
        "From a request to the end of its reply.",
        (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8),
    ),
}


class Meters(Protocol):
    """Whoever counts."""

    def count(self, name: Counted, amount: int = 1, **labels: str) -> None:
        """Adds `amount` to a counter; `labels` are those of `COUNTERS`."""

    def observe(self, name: Timed, seconds: float, policy: str) -> None:
        """Adds a time to a histogram."""


class RayMeters:
    """`Meters` as metrics of Ray: `ray_rlhf_serve_requests_total` and so on."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._counters = {
            name: Counter(PREFIX + name, description=words, tag_keys=labels)
            for name, (words, labels) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(PREFIX + name, description=words, boundaries=list(bounds), tag_keys=("policy",))
            for name, (words, bounds) in HISTOGRAMS.items()
        }

    def count(self, name: Counted, amount: int = 1, **labels: str) -> None:
        """As `Meters` says."""
        if amount > 0:  # Ray refuses zero
            self._counters[name].inc(amount, tags=labels)

    def observe(self, name: Timed, seconds: float, policy: str) -> None:
        """As `Meters` says."""
        self._histograms[name].observe(seconds, tags={"policy": policy})
