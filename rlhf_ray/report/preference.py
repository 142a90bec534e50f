"""The page of a run that aligns a policy directly on preferences."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_ray import metrics as m
from rlhf_ray.report.content import Column, Content
from rlhf_ray.report.curves import draw
from rlhf_ray.report.facts import Tile, figure, latest, number, show, split
from rlhf_ray.report.files import RunFiles
from rlhf_ray.report.fixed_data import accuracy_tile, claim_of_summary, data_tiles, loss_tile, model_dir, no_result
from rlhf_ray.report.preference_curves import LOSS_PLAN, OPTIMIZER_PLAN, PREFERENCE_PLANS, SPEED_PLAN

_SENTENCE = "The policy prefers the chosen answer in {} of held-out pairs"
_COLUMNS = (
    Column("Loss", m.TRAIN_LOSS, 4),
    Column("Held-out loss", m.HELDOUT_LOSS, 4),
    Column("Accuracy", m.TRAIN_ACCURACY, 3),
    Column("Held-out accuracy", m.HELDOUT_ACCURACY, 3),
    Column("Margin", m.TRAIN_MARGIN, 3),
    Column("Chosen reward", m.CHOSEN_REWARD, 3),
    Column("Rejected reward", m.REJECTED_REWARD, 3),
    Column("Beta", m.BETA, 4),
    Column("KL per answer", m.BETA_KL, 3),
    Column("Tokens a second", m.TOKENS_PER_SECOND, 0),
)


def preference_content(files: RunFiles) -> Content:
    """The page's own part."""
    summary, records = files.summary, files.records
    claim = claim_of_summary(summary, _SENTENCE)
    headline, verdict = (claim.headline, claim.verdict) if claim else no_result(len(records))
    found = [accuracy_tile(summary), loss_tile(summary), _margin(files)]
    if _adaptive(files.config) or number(summary, "beta_last") is not None:
        found.append(figure(summary, "Beta at the end", "beta_last", lambda x: show(x, 4), "as the controller left it"))
    if _adaptive(files.config) == "kl" or number(summary, "kl_target") is not None:
        found.append(_kl(summary))
    tiles, missing = split([*found, *data_tiles(summary, len(records))])
    return Content(
        headline=headline,
        verdict=verdict,
        tiles=tiles,
        missing=missing,
        absent_files=files.absent(),
        charts=draw((LOSS_PLAN, *PREFERENCE_PLANS, SPEED_PLAN, OPTIMIZER_PLAN), records),
        columns=[column for column in _COLUMNS if any(column.metric in record for record in records)],
        model_dir=model_dir(summary, ("policy_dir", "model_dir")),
    )


def _margin(files: RunFiles) -> Tile | str:
    for key, note in ((m.HELDOUT_MARGIN, "held-out"), (m.TRAIN_MARGIN, "last training batch")):
        value = latest(files.records, key)
        if value is not None:
            return Tile("Reward margin", show(value), f"implicit, chosen minus rejected, {note}")
    return f"Reward margin ({m.HELDOUT_MARGIN})"


def _kl(summary: Mapping[str, object]) -> Tile | str:
    last, target = number(summary, "kl_last"), number(summary, "kl_target")
    if last is None or not target:
        return "KL against its target (kl_last, kl_target)"
    off = abs(last / target - 1)
    side = "above" if last > target else "below"
    return Tile("KL against target", f"{show(last)} / {show(target)}", f"nats per answer, {off:.0%} {side}")


def _adaptive(config: Mapping[str, object]) -> str | None:
    """`kl` or `gap` if the run's beta adapts, else None."""
    method = config.get("method")
    adaptive = method.get("adaptive_beta") if isinstance(method, Mapping) else None
    return str(adaptive.get("type")) if isinstance(adaptive, Mapping) else None
