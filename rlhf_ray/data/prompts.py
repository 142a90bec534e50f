"""Prompts from a file or folder, the package's own rows, or a hub id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from rlhf_ray.data.chat import disarm, render, shorten
from rlhf_ray.data.files import DEMO
from rlhf_ray.data.rows import PromptRow, read_file_rows
from rlhf_ray.errors import UserError
from rlhf_ray.ports import State
from rlhf_ray.strict import Strict
from rlhf_ray.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptsConfig(Strict):
    """Where prompts come from."""

    path: str
    """A file (.jsonl, .json, .csv, .parquet), a folder of them, `demo` (the package's own), or a hub id."""
    heldout_path: str | None = None
    """Held-out prompts for `train.eval_prompts`; null: the last ones of `path` are held out."""
    split: str = "train"
    """The split of a hub data set."""
    limit: PositiveInt | None = None
    max_prompt_tokens: PositiveInt = 256
    overlong: Literal["error", "drop", "truncate"] = "error"
    """A prompt over the limit: an error that counts them, or dropped, or cut on the left; the count is printed."""
    system: Annotated[str, Field(max_length=4000)] | None = None
    """A system message put before every prompt that has none."""


def read_rows(config: PromptsConfig, heldout: bool = False) -> list[PromptRow]:
    """The rows of `config.path`, or those of the held-out file (none if there is no such file).

    Raises `UserError` naming the file, the row and what is wrong with it.
    """
    demo = config.path == "demo" and config.heldout_path in (None, "demo")
    if heldout:
        path = str(DEMO / "heldout.jsonl") if demo else config.heldout_path
        limit, key = None, "prompts.heldout_path"
    else:
        path = str(DEMO / "prompts.jsonl") if config.path == "demo" else config.path
        limit, key = config.limit, "prompts.path"
    if path is None:
        return []
    rows = read_file_rows(path, config.split, limit, key=key)
    return [_with_system(row, config.system) for row in rows]


def load_prompts(
    config: PromptsConfig, tokenizer: PreTrainedTokenizerBase, num_heldout: int
) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """Training prompts, `num_heldout` held-out ones, and notes on every row that was changed or left out.

    Held-out prompts are the first of the held-out file, or else the last of `config.path`; a training prompt with the
    same conversation is left out. Raises `UserError` for bad rows, over-long prompts and too few prompts.
    """
    notes: list[str] = []
    heldout_rows = read_rows(config, heldout=True) if num_heldout else []
    prompts = _render(read_rows(config), config, tokenizer, "prompts", notes)
    if heldout_rows:
        heldout = _render(heldout_rows, config, tokenizer, "held-out prompts", notes)
        if len(heldout) < num_heldout:
            raise UserError(f"train.eval_prompts = {num_heldout}, but only {len(heldout)} held-out prompts can be used")
        train, heldout = prompts, heldout[:num_heldout]
    elif len(prompts) <= num_heldout:
        raise UserError(
            f"{config.path} has {len(prompts)} usable prompts: holding out train.eval_prompts = {num_heldout} leaves "
            "none to train on; lower it or give prompts.heldout_path"
        )
    else:
        split = len(prompts) - num_heldout
        train, heldout = prompts[:split], prompts[split:]
    seen = {prompt.messages for prompt in heldout}
    fresh = [prompt for prompt in train if prompt.messages not in seen]
    if len(fresh) < len(train):
        notes.append(f"{len(train) - len(fresh)} training prompts equal to held-out ones are left out")
    if not fresh:
        raise UserError(f"{config.path}: no training prompt is left after those held out for evaluation")
    return fresh, heldout, notes


class ShuffledPrompts:
    """An endless order of prompts: epoch e is the permutation seeded by (seed, e). Implements `ports.PromptSource`."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise ValueError("there are no prompts to shuffle")
        self._prompts = list(prompts)
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._permutation()

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts; a prompt that comes twice in one call (at an epoch border) gets `#2` on its id."""
        taken: list[Prompt] = []
        times: dict[str, int] = {}
        while len(taken) < count:
            if self._position == len(self._prompts):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._permutation()
            prompt = self._prompts[self._order[self._position]]
            self._position += 1
            times[prompt.id] = times.get(prompt.id, 0) + 1
            again = times[prompt.id]
            taken.append(prompt if again == 1 else replace(prompt, id=f"{prompt.id}#{again}"))
        return taken

    def state_dict(self) -> State:
        """The cursor, JSON-able."""
        return {"epoch": self._epoch, "position": self._position, "prompts": len(self._prompts), "seed": self._seed}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues where `state` stopped. `UserError` if it belongs to another set of prompts or another seed."""
        for key, here in (("prompts", len(self._prompts)), ("seed", self._seed)):
            if state[key] != here:
                raise UserError(
                    f"the checkpoint was written with {key} = {state[key]}, this run has {here}; resume with the same "
                    "prompts and seed, or start a new run directory"
                )
        self._epoch, self._position = int(str(state["epoch"])), int(str(state["position"]))
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        order: list[int] = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._prompts)).tolist()
        return order


def _with_system(row: PromptRow, system: str | None) -> PromptRow:
    if system is None or any(message.role == "system" for message in row.messages):
        return row
    return replace(row, messages=(Message("system", system), *row.messages))


def _render(
    rows: list[PromptRow], config: PromptsConfig, tokenizer: PreTrainedTokenizerBase, what: str, notes: list[str]
) -> list[Prompt]:
    rows, changed = disarm(rows, tokenizer)
    if changed:
        notes.append(f"{changed} {what} spell out control tokens in their text; they were broken up with a space")
    ids = render(rows, tokenizer)
    limit = config.max_prompt_tokens
    long = [i for i, tokens in enumerate(ids) if len(tokens) > limit]
    if long and config.overlong == "error":
        longest = max(long, key=lambda i: len(ids[i]))
        raise UserError(
            f"{len(long)} of {len(rows)} {what} are longer than prompts.max_prompt_tokens = {limit} (longest: "
            f"{len(ids[longest])} tokens, {rows[longest].where}); set prompts.overlong to drop or truncate, or raise "
            "the limit"
        )
    if long and config.overlong == "truncate":
        for i in long:
            rows[i] = shorten(rows[i], tokenizer, limit)
            ids[i] = render([rows[i]], tokenizer)[0]
        notes.append(f"{len(long)} of {len(rows)} {what} over {limit} tokens are truncated, oldest text first")
    elif long:
        notes.append(f"{len(long)} of {len(rows)} {what} over {limit} tokens are dropped")
        if len(long) == len(rows):
            raise UserError(f"all {len(rows)} {what} are longer than prompts.max_prompt_tokens = {limit}; raise it")
    return [
        Prompt(row.id, row.messages, tuple(tokens), row.reference)
        for row, tokens in zip(rows, ids, strict=True)
        if len(tokens) <= limit
    ]
