"""Ports around ports: reused log-probs, dynamic sampling, rollouts that run ahead."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_ray import metrics as names
from rlhf_ray.config import RunConfig
from rlhf_ray.errors import RunError
from rlhf_ray.loop import Progress, restore, train
from rlhf_ray.ports import Metrics
from rlhf_ray.rewards.base import TruncatedConfig
from rlhf_ray.types import Batch, Prompt, Rollout, Score
from rlhf_ray.wrappers.dynamic_sampling import DynamicSampling
from rlhf_ray.wrappers.lagged import LaggedRollouts
from rlhf_ray.wrappers.old_logprobs import ReusedLogprobs
from rlhf_ray.wrappers.wrapped import wrapped
from tests.builders import random_batch, run_config
from tests.fakes import PAD, FakeEngines, FakeJournal, FakePolicy, FakePrompts, FakeReward, World, prompts, world

GRPO = {"type": "grpo", "importance": "token"}


def _config(steps: int, **changes: dict[str, object]) -> RunConfig:
    sizes = {"num_steps": steps, "prompts_per_step": 2, "checkpoint_every": 2, **changes.pop("train", {})}
    return run_config(Path("unused"), algorithm=changes.pop("algorithm", GRPO), train=sizes, **changes)


class _Drifting(FakePolicy):
    """Differs from the engines by `drift` nats a token."""

    drift = 0.0

    def logprobs(self, batch: Batch) -> torch.Tensor:
        return super().logprobs(batch) + self.drift

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        return super().update(batch, step, kl_coef) | {names.FIRST_DRIFT: self.drift}


def test_log_probs_are_reused_while_the_drift_is_small_and_a_switch_is_said() -> None:
    policy, journal, batch = _Drifting([]), FakeJournal([]), random_batch(4, 12, 50)
    port = ReusedLogprobs(policy, 0.02, journal)
    asked = []
    # The bound is 0.02; once above it, reuse resumes at half of it.
    for step, policy.drift in enumerate((0.005, 0.015, 0.03, 0.015, 0.009, 0.0), start=1):
        before = policy.events.count("policy.logprobs")
        old = port.logprobs(batch)
        asked.append(policy.events.count("policy.logprobs") > before)
        metrics = port.update(batch, step, 0.1)
        assert metrics[names.REUSED_LOGPROBS] == (not asked[-1])
        assert (old is batch.rollout_logprobs) == (not asked[-1])
        assert (names.FIRST_RATIO in metrics) == asked[-1], "the ratio of reused log-probs is their drift, no fault"
        assert metrics.get(names.DRIFT_MEAN) == (None if asked[-1] else policy.drift)
    assert asked == [True, False, False, True, True, False]
    assert [kind for kind, _ in journal.said] == ["old_logprobs"] * 3
    assert "engine's log-probs" in journal.said[0][1] and "recomputes" in journal.said[1][1]
    assert "0.03 nats" in journal.said[1][1] and "bound 0.02" in journal.said[1][1]


class _Tasteful(FakeReward):
    """All answers to a prompt are worth the same unless its number is odd."""

    def _score(self, rollout: Rollout) -> Score:
        odd = int(rollout.prompt.id.removeprefix("p").split("#")[0]) % 2
        return super()._score(rollout) if odd or rollout.id in self.errors else Score(1.0, {"fake": 1.0})


def _dynamic(config: RunConfig, fakes: World) -> None:
    fakes.reward = _Tasteful(fakes.events, fakes.reward.errors)
    roles = wrapped(config, fakes.roles, 1)
    train(config, roles, config.algorithm.make(), PAD, Progress())


def test_dynamic_sampling_replaces_prompts_that_teach_nothing() -> None:
    config, fakes = _config(3, train={"dynamic_sampling": {"max_rounds": 20}}), world(20, critic=False)
    _dynamic(config, fakes)
    replaced = 0
    for step, batch in enumerate(fakes.policy.batches, start=1):
        assert len(batch) == 4 and batch.advantages is not None and (batch.advantages != 0).any(dim=1).all()
        table = fakes.journal.tables[step]
        assert len({rollout.prompt.id for rollout in table}) == 2
        assert [rollout.sample_index for rollout in table] == [0, 1, 0, 1]
        replaced += int(fakes.journal.lines[step][names.REPLACED_PROMPTS])
    used = {rollout.prompt.id for table in fakes.journal.tables.values() for rollout in table}
    taken = [prompt for call in fakes.prompts.taken for prompt in call]
    assert used == {prompt for prompt in taken if int(prompt[1:]) % 2}, "an accepted prompt was lost"
    assert len(used) == 6 and replaced == len(taken) - 6 > 0, "an accepted prompt was repeated"


def test_dynamic_sampling_keeps_what_could_not_be_scored_on_record() -> None:
    config = _config(1, train={"dynamic_sampling": {"max_rounds": 20}})
    victim = f"{world(20).prompts.take(1)[0].id}/0"
    fakes = world(20, errors={victim: "judge: no idea"}, critic=False)
    _dynamic(config, fakes)
    failed = [one for one in fakes.journal.tables[1] if one.score is not None and one.score.error]
    assert [one.id for one in failed] == [victim], "one answer is left to its prompt: replaced, and the fault kept"
    assert len(fakes.policy.batches[0]) == 4


def test_dynamic_sampling_gives_up_with_the_setting_to_change() -> None:
    fakes = world(8, critic=False)
    even = FakePrompts([prompt for prompt in prompts(16) if not int(prompt.id[1:]) % 2])
    sampling = DynamicSampling(even, fakes.engines, _Tasteful([]), 3, TruncatedConfig())
    scored = sampling.submit(sampling.generate(even.take(2), 2, 1))
    with pytest.raises(RunError, match=r"2 of 2 prompts.*after 3 rounds.*max_rounds"):
        scored()
    assert len(even.taken) == 3, "the prompts of a round after the last were taken for nothing"


@pytest.mark.parametrize(
    ("truncated", "teaches"),
    [
        (TruncatedConfig(mode="score"), True),
        (TruncatedConfig(mode="mask"), False),
        (TruncatedConfig(mode="penalize", penalty=1.0), False),  # 1 and 2 - 1
    ],
)
def test_dynamic_sampling_compares_what_the_batch_will_have(truncated: TruncatedConfig, teaches: bool) -> None:
    """Every second answer was cut off and is worth 2, the first 1."""
    source = FakePrompts(prompts(4))
    engines = FakeEngines([], frozenset(f"{prompt.id}/1" for prompt in prompts(4)))
    sampling = DynamicSampling(source, engines, FakeReward([]), 1, truncated)
    scored = sampling.submit(sampling.generate(source.take(2), 2, 1))
    if teaches:
        assert len(scored()) == 4
    else:
        with pytest.raises(RunError, match="2 of 2 prompts"):
            scored()


def test_dynamic_sampling_keeps_prompts_whose_answers_differ_in_cost_alone() -> None:
    class Priced(FakeReward):
        def _score(self, rollout: Rollout) -> Score:
            return Score(1.0, cost=float(rollout.sample_index))

    source = FakePrompts(prompts(4))
    sampling = DynamicSampling(source, FakeEngines([]), Priced([]), 2, TruncatedConfig())
    assert len(sampling.submit(sampling.generate(source.take(2), 2, 1))()) == 4 and len(source.taken) == 1


def test_dynamic_sampling_tells_why_nothing_could_be_scored() -> None:
    source = FakePrompts(prompts(4))
    errors = {f"{prompt.id}/{sample}": "judge: it is down" for prompt in prompts(4) for sample in (0, 1)}
    sampling = DynamicSampling(source, FakeEngines([]), FakeReward([], errors), 9, TruncatedConfig())
    scored = sampling.submit(sampling.generate(source.take(2), 2, 1))
    with pytest.raises(RunError, match=r"after 1 rounds, because 4 rollouts could not be scored \(.*it is down"):
        scored()
    assert len(source.taken) == 1, "other prompts were tried on a reward that does not work"


def test_a_prompt_that_is_tried_again_in_a_step_is_sampled_anew() -> None:
    """Two prompts, of which p0 teaches nothing: its name, hence the seed of its answers, changes in each round."""
    source, asked = FakePrompts(prompts(2)), []

    class Engines(FakeEngines):
        def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
            asked.append([prompt.id for prompt in prompts_P])
            yield from super().generate(prompts_P, num_samples, step)

    sampling = DynamicSampling(source, Engines([]), _Tasteful([]), 6, TruncatedConfig())
    scored = sampling.submit(sampling.generate(source.take(2), 2, 1))
    with pytest.raises(RunError, match="1 of 2 prompts"):
        scored()
    again = [prompt for names in asked[1:] for prompt in names]
    assert len(again) == len(set(again)) >= 2 and all(prompt.startswith("p0#r") for prompt in again)


class _Slow(FakeEngines):
    """Engines that take a random while; the version of a response is that at its first token."""

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        draw = random.Random(step)
        for rollout in super().generate(prompts_P, num_samples, step):
            time.sleep(draw.random() * 2e-3)
            yield rollout


class _Slower(FakePolicy):
    """A learner that every second step takes longer than the engines."""

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        time.sleep(2e-2 * (step % 2))
        return super().update(batch, step, kl_coef)


def _lagged(config: RunConfig, fakes: World, progress: Progress | None = None) -> None:
    fakes.engines.__class__ = _Slow
    progress = progress or Progress()
    roles = wrapped(config, fakes.roles, progress.step + 1)
    train(config, roles, config.algorithm.make(), PAD, progress)


@settings(max_examples=15, deadline=None)
@given(lag=st.integers(0, 3), steps=st.integers(1, 7), slow_learner=st.booleans())
@example(lag=1, steps=7, slow_learner=True)
def test_no_rollout_is_staler_than_max_lag_and_every_prompt_comes_once(
    lag: int, steps: int, slow_learner: bool
) -> None:
    config = _config(steps, train={"max_lag": lag})
    whole, fakes = world(9, critic=False), world(9, critic=False)
    if slow_learner:
        fakes.policy.__class__ = _Slower
    _lagged(_config(steps), whole)
    _lagged(config, fakes)
    assert fakes.prompts.taken == whole.prompts.taken
    for step, table in fakes.journal.tables.items():
        assert {one.prompt.id for one in table} == {one.prompt.id for one in whole.journal.tables[step]}
        lags = [step - 1 - one.policy_version for one in table]
        assert all(0 <= one <= min(lag, step - 1) for one in lags)
        if lag:
            assert fakes.journal.lines[step][names.LAG_MAX] == max(lags)
    assert not [thread for thread in threading.enumerate() if not thread.daemon and "rollouts" in thread.name]


def test_generation_runs_ahead_while_the_learner_is_busy() -> None:
    fakes = world(9, critic=False)
    config = _config(4, train={"max_lag": 1})
    started = threading.Event()

    class Patient(FakePolicy):
        def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
            if step == 2:
                deadline = time.monotonic() + 10
                while "generated 3" not in self.events and time.monotonic() < deadline:
                    time.sleep(1e-3)
                started.set() if "generated 3" in self.events else None
            return super().update(batch, step, kl_coef)

    fakes.policy.__class__ = Patient
    _lagged(config, fakes)
    assert started.is_set(), "step 3 was not generated while step 2 was learned"


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_asks_again_for_what_was_under_way(stop: int) -> None:
    config = _config(5, train={"max_lag": 2, "checkpoint_every": 1})
    whole, broken, resumed = (world(9, critic=False) for _ in range(3))
    _lagged(config, whole)
    broken.stop_after = stop
    _lagged(config, broken)
    (last,) = [step for step in broken.journal.states if step == max(broken.journal.states)]
    progress = restore(resumed.roles, config.algorithm.make(), broken.journal.states[last])
    resumed.engines.version = progress.version
    _lagged(config, resumed, progress)
    for step in range(1, 6):
        table = (broken if step <= last else resumed).journal.tables[step]
        assert [one.id for one in table] == [one.id for one in whole.journal.tables[step]]


def test_an_error_of_the_engines_reaches_the_loop() -> None:
    class Broken(FakeEngines):
        def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
            if step == 2:
                raise RunError("rollout-0 died")
            yield from super().generate(prompts_P, num_samples, step)

    fakes = world(9, critic=False)
    fakes.engines.__class__ = Broken
    ahead = LaggedRollouts(fakes.prompts, fakes.engines, 1, 2, range(1, 4))
    assert len(list(ahead.generate(ahead.take(2), 2, 1))) == 4
    with pytest.raises(RunError, match="rollout-0 died"):
        list(ahead.generate(ahead.take(2), 2, 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": {"type": "grpo"}, "train": {"max_lag": 1}}, r"max_lag = 1: grpo .* set algorithm.importance"),
        ({"train": {"max_lag": 1, "dynamic_sampling": {}}}, "exclude each other"),
        ({"algorithm": {"type": "ppo"}, "rollout": {"samples_per_prompt": 1}, "train": {"dynamic_sampling": {}}},
         "samples_per_prompt to 2 or more"),
        ({"rollout": {"top_p": 0.9}}, "top_p would sample from another distribution"),
        ({"algorithm": {"type": "trpo", "old_logprobs": "engine"}}, "set old_logprobs = learner"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_together_are_refused(changes: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _config(2, **changes)
