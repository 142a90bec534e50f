"""A reward function in a process of its own, where it may hang, crash, fork or eat memory without taking more with it.

The two ends speak in lines of JSON. What the function prints goes to the standard error of both.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import TextIO

from rlhf_ray.errors import UserError
from rlhf_ray.rewards.functions import load_function


def main(path: str, memory_gib: str) -> None:
    """Answers questions `{"prompt", "response", "reference"}` with `{"value"}` or `{"error", "transient"}` until there
    are no more; the very first answer says whether the function could be loaded."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if memory_gib:
        limit = int(float(memory_gib) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.path.insert(0, os.getcwd())
    try:
        function = load_function(path)
    except UserError as error:
        _say(answers, {"error": str(error)})
        return
    _say(answers, {"value": None})
    me = os.getpid()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            value = function(question["prompt"], question["response"], question["reference"])
            answer = _number(value)
        except Exception as error:  # a user's function may raise anything; the rollout is quarantined with it
            answer = {"error": f"{type(error).__name__}: {error}", "transient": isinstance(error, OSError)}
        if os.getpid() != me:
            os._exit(0)  # the function has forked, and this is the copy
        _say(answers, answer)


def _number(value: object) -> dict[str, object]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {"error": f"expected a number, got {type(value).__name__}"}
    return {"value": float(value)}


def _say(answers: TextIO, answer: dict[str, object]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
