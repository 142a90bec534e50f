"""DAPO's soft penalty of long responses."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.types import Rollout


class Overlong:
    """From 0 at `max_tokens - buffer` response tokens down to -1 at `max_tokens` (arXiv 2503.14476, equation 13)."""

    def __init__(self, max_tokens: int, buffer: int) -> None:
        self._free, self._buffer = max_tokens - buffer, buffer

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """One number a rollout."""
        over = [(len(rollout.response_ids) - self._free) / self._buffer for rollout in rollouts]
        return [-min(max(share, 0.0), 1.0) for share in over]
