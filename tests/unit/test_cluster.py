"""What is said of a cluster that cannot be had."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import AuthenticationError

from rlhf_ray.cluster import connected
from rlhf_ray.config import PlacementConfig
from rlhf_ray.errors import LostError, UserError


@pytest.mark.parametrize(
    ("address", "error", "told"),
    [
        ("auto", ConnectionError("Could not find any running Ray instance.\nmore"), "at auto .*running Ray instance"),
        ("head:6379", RuntimeError("Version mismatch"), "at head:6379 .*Version mismatch.*versions of Ray"),
        ("head:6379", AuthenticationError("Invalid token"), "Invalid token.*the token that this machine has"),
        (None, PermissionError("[Errno 13] Permission denied: '/tmp/ray'"), "cannot start on this machine: .*denied"),
        (None, Exception("The current node timed out during startup."), "did not start on this machine: .*doctor"),
    ],
)
def test_cause_and_fix(monkeypatch: pytest.MonkeyPatch, address: str | None, error: Exception, told: str) -> None:
    def init(**settings: object) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kind = LostError if address is None and type(error) is Exception else UserError
    with pytest.raises(kind, match=told), connected(PlacementConfig(address=address)):
        pass
