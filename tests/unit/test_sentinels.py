"""Each sentinel fires on its own breach, once, with a sentence; and none on a clean step."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_ray import metrics as names
from rlhf_ray.config import RunConfig
from rlhf_ray.errors import RunError
from rlhf_ray.ports import Metrics
from rlhf_ray.sentinels import Sentinels, drift
from rlhf_ray.types import Batch
from tests.builders import random_batch, run_config
from tests.fakes import FakeJournal

CLEAN: Metrics = {
    names.FIRST_RATIO: 1e-6,
    "policy/parameters_without_gradient": 0.0,
    "critic/parameters_without_gradient": 0.0,
    "policy/skipped_updates": 0.0,
    "critic/skipped_updates": 0.0,
}


def _batch(drift_by: float = 1e-5, reference_by: float = 1e-5) -> Batch:
    batch = random_batch(6, 16, 50)
    assert batch.old_logprobs is not None
    shifted = torch.where(batch.response_mask, batch.old_logprobs + drift_by, 0.0)
    return replace(batch, rollout_logprobs=shifted, ref_logprobs=batch.old_logprobs - reference_by)


def _check(batch: Batch, metrics: Metrics, step: int = 1, config: RunConfig | None = None) -> list[str]:
    journal = FakeJournal([])
    sentinels = Sentinels(config or run_config(Path("unused")), journal)
    found = sentinels.check_batch(step, batch)
    sentinels.check_update(step, metrics | found)
    assert all(kind == "sentinel" for kind, _ in journal.said)
    return [sentence for _, sentence in journal.said]


def test_a_clean_step_raises_no_alarm() -> None:
    assert _check(_batch(), CLEAN) == []
    aborting = run_config(Path("unused"), sentinels={"on_breach": "abort"})
    assert _check(_batch(), CLEAN, config=aborting) == []


@pytest.mark.parametrize(
    ("batch", "changed", "sentence"),
    [
        (_batch(), {names.FIRST_RATIO: math.nan}, "differs from its own old log-probs: the ratio is off by nan"),
        (_batch(), {names.FIRST_RATIO: 0.25}, "already differs from its own old log-probs: the ratio is off by 0.25"),
        (_batch(reference_by=0.5), {}, "the policy and the reference disagree: their log-probs differ by 0.5"),
        (_batch(drift_by=-0.125), {}, "vLLM and the learner disagree .* differ on average by 0.12"),
        (_batch(), {"policy/parameters_without_gradient": 3.0}, "3 trainable parameters of the policy got no gradient"),
        (_batch(), {"critic/parameters_without_gradient": 1.0}, "1 trainable parameters of the critic got no gradient"),
        (_batch(), {"policy/skipped_updates": 2.0}, "2 updates of the policy were skipped: a gradient was not finite"),
        (_batch(), {"critic/skipped_updates": 1.0}, "1 updates of the critic were skipped: a gradient was not finite"),
    ],
)
def test_each_breach_fires_once_and_aborts_if_asked(batch: Batch, changed: Metrics, sentence: str) -> None:

    (said,) = _check(batch, CLEAN | changed)
    assert said.startswith("Step 1: ") and re.search(sentence, said)
    with pytest.raises(RunError, match=f"sentinel at step 1: .*{sentence}"):
        _check(batch, CLEAN | changed, config=run_config(Path("unused"), sentinels={"on_breach": "abort"}))


def test_the_reference_is_compared_before_the_first_update_only() -> None:
    assert _check(_batch(reference_by=0.5), CLEAN, step=2) == []


def test_a_step_that_did_not_update_the_policy_has_nothing_to_compare() -> None:
    assert _check(_batch(), {}) == []


def test_drift_is_measured_on_response_tokens() -> None:
    batch = _batch(drift_by=0.0)
    row, column = batch.response_mask.nonzero()[0].tolist()
    logprobs = batch.rollout_logprobs.clone()
    logprobs[row, column] += 2.0
    logprobs[~batch.response_mask] = 99.0
    found = drift(replace(batch, rollout_logprobs=logprobs))
    assert found[names.DRIFT_MAX] == pytest.approx(2.0, abs=1e-5)
    assert found[names.DRIFT_MEAN] == pytest.approx(2.0 / float(batch.response_mask.sum()), rel=1e-4)


def test_a_run_without_a_critic_is_clean_without_its_metrics() -> None:
    config = run_config(Path("unused"), algorithm={"type": "online_dpo"}, sentinels={"on_breach": "abort"})
    metrics = {name: value for name, value in CLEAN.items() if not name.startswith("critic")}
    assert _check(_batch(), metrics, config=config) == []
    with pytest.raises(RunError, match="2 updates of the policy were skipped"):
        _check(_batch(), metrics | {"policy/skipped_updates": 2.0}, config=config)
