"""Which policy answers a conversation: stable, or a canary for a share of them; promote and roll back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from rlhf_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that is served. `version` is in the id of each of its replies."""

    version: str
    source: str
    """What was asked for: a run directory, a folder, an embedded model."""
    folder: str
    gate: str
    """What its gate said, in a sentence."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Versions by their part in the service."""

    stable: str
    canary: str | None = None
    weight: float = 0.0
    """The share of conversations that the canary answers."""
    previous: str | None = None
    """What was stable before the last promotion."""
    salt: str = ""
    """Draws sides and shares; unknown to clients."""

    def version_for(self, conversation: str) -> str:
        """The version that answers `conversation`, always the same one while the traffic is as it is."""
        if self.canary is None:
            return self.stable
        return self.canary if self._draw("canary", self.canary, conversation) < self.weight else self.stable

    def version_of_side(self, side: str, conversation: str, turn: int) -> str:
        """The version behind blind side `a` or `b` of a turn of a conversation."""
        if self.canary is None:
            return self.stable
        swapped = self._draw("side", conversation, str(turn)) < 0.5
        return self.canary if (side == "a") == swapped else self.stable

    def promoted(self) -> Traffic:
        """The canary as the stable policy. `UserError` without one."""
        if self.canary is None:
            raise UserError("there is no canary to promote: start the service with --canary")
        return replace(self, stable=self.canary, canary=None, weight=0.0, previous=self.stable)

    def rolled_back(self) -> Traffic:
        """Without the canary; without one, what was stable before the last promotion. `UserError` with neither."""
        if self.canary is not None:
            return replace(self, canary=None, weight=0.0)
        if self.previous is None:
            raise UserError("there is nothing to roll back to: no canary, and nothing was promoted")
        return replace(self, stable=self.previous, previous=self.stable)

    def _draw(self, *parts: str) -> float:
        digest = hashlib.sha256("\0".join((self.salt, *parts)).encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64
