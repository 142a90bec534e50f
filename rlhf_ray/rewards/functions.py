"""Rewards that are plain Python functions."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rlhf_ray.errors import UserError

if TYPE_CHECKING:  # loads torch, which most functions do not need
    from rlhf_ray.types import Rollout

RewardFunction = Callable[[str, str, str | None], float]


def load_function(path: str) -> RewardFunction:
    """The function at `package.module:function`; a `UserError` says what is wrong with the path, or with the module."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UserError(f"reward function {path}: cannot import {module} ({error}); is it on PYTHONPATH?") from error
    except (Exception, SystemExit) as error:  # a user's module may do anything when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"reward function {path}: importing {module} failed: {reason}") from error
    if found is None:
        raise UserError(f"reward function {path}: {module} has no {name}")
    if not callable(found):
        raise UserError(f"reward function {path}: it is a {type(found).__name__}, not a function")
    try:
        inspect.signature(found).bind("prompt", "response", None)
    except TypeError as error:
        raise UserError(f"reward function {path} must accept (prompt, response, reference): {error}") from None
    except ValueError:
        pass  # a builtin without a signature
    function: RewardFunction = found
    return function


class FunctionReward:
    """A function `(prompt, response, reference) -> float` as a source; `prompt` is the last user message."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function

    def score(self, rollouts: Sequence[Rollout]) -> list[float | Exception]:
        """One entry a rollout; what the function raised stands in place of a number."""
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> float | Exception:
        asked = [message.content for message in rollout.prompt.messages if message.role == "user"]
        try:
            return self._function(asked[-1] if asked else "", rollout.text, rollout.prompt.reference)
        except Exception as error:  # a user's function may raise anything; the rollout is quarantined with it
            return error
