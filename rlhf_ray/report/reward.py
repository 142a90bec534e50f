"""The page of a reward model's run."""

from __future__ import annotations

from pydantic import ValidationError

from rlhf_ray import metrics as m
from rlhf_ray.evaluation.reward import EVALUATION_FILE, RewardEvaluation
from rlhf_ray.report.content import Column, Content
from rlhf_ray.report.curves import draw
from rlhf_ray.report.facts import Tile, percent, plural, show, span, split
from rlhf_ray.report.files import RunFiles
from rlhf_ray.report.findings import findings
from rlhf_ray.report.fixed_data import (
    Claim,
    accuracy_tile,
    claim_of_summary,
    data_tiles,
    loss_tile,
    model_dir,
    no_result,
)
from rlhf_ray.report.preference_curves import LOSS_PLAN, OPTIMIZER_PLAN, PREFERENCE_PLANS, SPEED_PLAN

_SENTENCE = "The reward model agrees with people on {} of held-out comparisons"
_THUMBS = "The reward model tells good from bad answers in {} of held-out thumbs"
_COLUMNS = (
    Column("Loss", m.TRAIN_LOSS, 4),
    Column("Held-out loss", m.HELDOUT_LOSS, 4),
    Column("Accuracy", m.TRAIN_ACCURACY, 3),
    Column("Held-out accuracy", m.HELDOUT_ACCURACY, 3),
    Column("Margin", m.TRAIN_MARGIN, 3),
    Column("Gradient norm", m.TRAIN_GRAD_NORM, 3),
    Column("Learning rate", m.LEARNING_RATE, 7),
    Column("Tokens a second", m.TOKENS_PER_SECOND, 0),
)


def reward_content(files: RunFiles) -> Content:
    """The page's own part. Raises `ValueError` if evaluation.json is broken."""
    evaluation = _evaluation(files)
    claim = _claim(files, evaluation)
    headline, verdict = (claim.headline, claim.verdict) if claim else no_result(len(files.records))
    tiles, missing = split(
        [*_quality(files, evaluation), loss_tile(files.summary), *data_tiles(files.summary, len(files.records))]
    )
    plans = (LOSS_PLAN, *PREFERENCE_PLANS, SPEED_PLAN, OPTIMIZER_PLAN)
    return Content(
        headline=headline,
        verdict=verdict,
        tiles=tiles,
        missing=missing,
        absent_files=files.absent(EVALUATION_FILE),
        charts=draw(plans, files.records),
        columns=_COLUMNS,
        model_dir=model_dir(files.summary),
        template="findings.html.j2",
        details=findings(evaluation) if evaluation is not None else [],
    )


def _evaluation(files: RunFiles) -> RewardEvaluation | None:
    path = files.path / EVALUATION_FILE
    if not path.is_file():
        return None
    try:
        return RewardEvaluation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{EVALUATION_FILE}: {place}: {first['msg']}") from error


def _claim(files: RunFiles, evaluation: RewardEvaluation | None) -> Claim | None:
    """Comparisons if there are any, else thumbs, else what the summary says."""
    if evaluation is None:
        return claim_of_summary(files.summary, _SENTENCE)
    overall = evaluation.overall
    if overall.accuracy is not None:
        note = f"{plural(overall.decisions, 'comparison')} on {plural(overall.prompts, 'prompt')} not trained on."
        return Claim(overall.accuracy, overall.ci95, _SENTENCE, note=note)
    thumbs = next((row for row in evaluation.by_kind if row.name == "thumb"), None)
    if thumbs is None or thumbs.accuracy is None or evaluation.thumbs_majority is None:
        return None
    note = f"{plural(thumbs.decisions, 'thumb')} on {plural(thumbs.prompts, 'prompt')} not trained on."
    name = "the commoner thumb"
    return Claim(thumbs.accuracy, thumbs.ci95, _THUMBS, evaluation.thumbs_majority, name, note)


def _quality(files: RunFiles, evaluation: RewardEvaluation | None) -> list[Tile | str]:
    if evaluation is None:
        return [accuracy_tile(files.summary), f"Calibration, length bias ({EVALUATION_FILE})"]
    tiles: list[Tile | str] = []
    overall, length, calibration = evaluation.overall, evaluation.length, evaluation.pair_calibration
    if overall.accuracy is not None:
        tiles.append(Tile("Held-out accuracy", percent(overall.accuracy), span(overall.ci95, percent)))
    else:
        tiles.append(accuracy_tile(files.summary))
    if length is not None and length.length_controlled.accuracy is not None:
        value, ends = length.length_controlled.accuracy, length.length_controlled.ci95
        tiles.append(Tile("Length-controlled", percent(value), f"accuracy without length; {span(ends, percent)}"))
    calibration = calibration or evaluation.thumb_calibration
    if calibration is not None:
        bound = f"a calibrated model stays below {percent(calibration.ece_if_calibrated)}"
        tiles.append(Tile("Calibration error", percent(calibration.ece), f"ECE; {bound}"))
    for row in evaluation.kendall[:1]:
        tiles.append(Tile("Kendall's tau-b", show(row.tau), f"{row.kind}s; {span(row.ci95, show)}"))
    return tiles
