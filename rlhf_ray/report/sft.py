"""The page of a supervised fine-tuning run."""

from __future__ import annotations

import math

from rlhf_ray import metrics as m
from rlhf_ray.report.content import Column, Content, Verdict
from rlhf_ray.report.curves import Plan, draw
from rlhf_ray.report.facts import Tile, figure, latest, number, percent, show, split
from rlhf_ray.report.files import RunFiles
from rlhf_ray.report.fixed_data import data_tiles, loss_tile, model_dir, no_result
from rlhf_ray.report.preference_curves import LOSS_PLAN, OPTIMIZER_PLAN, SPEED_PLAN

_TOKENS = Plan(
    "token-accuracy",
    "Tokens predicted rightly",
    "Share of the answers' tokens that are the model's first choice.",
    (("tokens", True, (("training", m.TOKEN_ACCURACY),)),),
)
_COLUMNS = (
    Column("Loss", m.TRAIN_LOSS, 4),
    Column("Held-out loss", m.HELDOUT_LOSS, 4),
    Column("Token accuracy", m.TOKEN_ACCURACY, 3),
    Column("Gradient norm", m.TRAIN_GRAD_NORM, 3),
    Column("Learning rate", m.LEARNING_RATE, 7),
    Column("Tokens a second", m.TOKENS_PER_SECOND, 0),
)


def sft_content(files: RunFiles) -> Content:
    """The page's own part."""
    headline, verdict = _headline(files)
    loss = number(files.summary, "heldout_loss")
    perplexity: Tile | str = "Held-out perplexity (heldout_loss)"
    if loss is not None and loss < 100:
        perplexity = Tile("Held-out perplexity", show(math.exp(loss)), "exp(loss), per token of the answers")
    last = {} if (value := latest(files.records, m.TOKEN_ACCURACY)) is None else {m.TOKEN_ACCURACY: value}
    tiles, missing = split(
        [
            loss_tile(files.summary),
            perplexity,
            figure(last, "Token accuracy", m.TOKEN_ACCURACY, percent, "of the last training batch"),
            *data_tiles(files.summary, len(files.records)),
        ]
    )
    return Content(
        headline=headline,
        verdict=verdict,
        tiles=tiles,
        missing=missing,
        absent_files=files.absent(),
        charts=draw((LOSS_PLAN, _TOKENS, SPEED_PLAN, OPTIMIZER_PLAN), files.records),
        columns=_COLUMNS,
        model_dir=model_dir(files.summary, ("policy_dir", "model_dir")),
    )


def _headline(files: RunFiles) -> tuple[str, Verdict]:
    """One loss has no interval, so the headline states numbers and claims nothing about them."""
    losses = [(number(r, "step"), value) for r in files.records if (value := number(r, m.HELDOUT_LOSS)) is not None]
    last = number(files.summary, "heldout_loss")
    last = losses[-1][1] if last is None and losses else last
    if last is None:
        return no_result(len(files.records))
    verdict = Verdict("unknown", "One number, without an interval")
    if len(losses) > 1:
        begin = f"{show(losses[0][1], 3)} at step {losses[0][0] or 0:.0f}"
        return f"Held-out loss went from {begin} to {show(last, 3)}", verdict
    return f"Held-out loss is {show(last, 3)}; how it was earlier is not recorded", verdict
