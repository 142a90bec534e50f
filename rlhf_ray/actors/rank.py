"""A rank of a learner: one command of its inbox after another, as all ranks do; the first builds the learner."""

from __future__ import annotations

import gc
import time
import traceback
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import ray

from rlhf_ray.actors.inbox import BEGIN, Answer, Begin, Command, Start


def train_loop(arguments: dict[str, Any]) -> None:
    """Ray Train's `train_loop_per_worker`: executes commands until told to stop. `arguments` has the `inbox`, a handle
    without a static type, and the CPU `threads` of a rank.
    """
    import torch

    torch.set_num_threads(arguments["threads"])
    _serve(arguments["inbox"])


def _serve(inbox: Any) -> None:
    import ray.train  # takes a second, which an inbox need not

    rank = ray.train.get_context().get_world_rank()
    start: Start = ray.get(inbox.join.remote(rank, ray.get_runtime_context().current_actor))
    learner = start.begin.build() if start.begin is not None else None
    index, writing = start.index, Future[object]()
    writing.set_result(None)
    while True:
        command, answered = ray.get(inbox.take.remote(index))
        if command is None:
            return
        # Another controller has begun, and others may wait for this rank in a collective; or there was a commit since
        # it has joined, from which a rank that joins now will start. Its group is built again.
        if command.forgotten and (command.mutates or not answered):
            raise RuntimeError(f"'{command.name}' cannot be had any more: it was committed or taken back meanwhile")
        if command.name == BEGIN and not command.forgotten:
            learner = None
            wait([writing])  # into a folder that nobody wants any more, and may remove now
            gc.collect()  # two models at once may not fit
            learner, answer = _begin(command.arguments[0])
            ray.get(inbox.answer.remote(index, rank, answer))
        elif not command.forgotten and (command.mutates or not answered):
            answer = _execute(learner, command)
            if isinstance(answer.value, Future):  # it is done later, beside other commands
                writing = answer.value
                writing.add_done_callback(partial(_answer_late, inbox, index, rank))
            else:
                ray.get(inbox.answer.remote(index, rank, answer))
        index += 1


def _answer_late(inbox: Any, index: int, rank: int, done: Future[object]) -> None:
    error = done.exception()
    answer = Answer(value=done.result()) if error is None else Answer(error=_describe(error))
    inbox.answer.remote(index, rank, answer)


def _begin(begin: Begin) -> tuple[Any, Answer]:
    try:
        return begin.build(), Answer()
    except Exception as error:  # the caller decides what becomes of a group whose learner cannot be built
        return None, Answer(error=_describe(error))


def _execute(learner: object, command: Command) -> Answer:
    arguments = [ray.get(a) if isinstance(a, ray.ObjectRef) else a for a in command.arguments]
    began = time.monotonic()
    try:
        value = getattr(learner, command.name)(*arguments)
        return Answer(value=value, seconds=time.monotonic() - began, ended=time.time())
    except Exception as error:  # the fault-tolerance seam: the error travels to the caller, the learner lives on
        return Answer(error=_describe(error))


def _describe(error: BaseException) -> str:
    trace = "".join(traceback.format_exception(error)[-3:])
    return f"{type(error).__name__}: {error}\n{trace}"
