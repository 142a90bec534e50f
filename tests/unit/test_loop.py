"""The loop on fakes: what happens in which order, what is left out, and that a resumed run goes on as if unbroken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.ppo import PPOConfig
from rlhf_ray.config import RunConfig
from rlhf_ray.loop import Progress, restore, train
from tests.builders import run_config
from tests.fakes import PAD, World, world


def _config(steps: int, **changes: dict[str, object]) -> RunConfig:
    sizes = {"num_steps": steps, "prompts_per_step": 2, "checkpoint_every": 2, **changes.pop("train", {})}
    return run_config(Path("unused"), train=sizes, **changes)


def _run(config: RunConfig, fakes: World, progress: Progress | None = None) -> Progress:
    progress = progress or Progress()
    train(config, fakes.roles, config.algorithm.make(), PAD, progress)
    return progress


def _step(number: int) -> list[str]:
    return [
        "submit",  # the reward takes the stream before anything is generated
        f"generate {number} with version {number - 1}",
        f"generated {number}",
        "scores",
        "policy.logprobs",
        "reference.logprobs",
        "critic.values",
        f"critic.update {number}",
        f"policy.update {number}",
        f"push {number}",
        f"metrics {number}",
    ]


def _commit(number: int) -> list[str]:
    return [f"commit {number}", "policy.save", "critic.save", *_finish(number)]


def _finish(number: int) -> list[str]:
    return ["policy.saved", "critic.saved", f"policy.committed step-{number}", f"critic.committed step-{number}"]


def test_the_order_of_a_run() -> None:
    """The push comes after both updates and before the next generation; the last step commits whatever its number."""
    fakes = world()
    progress = _run(_config(3), fakes)
    assert fakes.events == [*_step(1), *_step(2), *_commit(2), *_step(3), *_commit(3)]
    assert progress == Progress(3, 3)


def test_the_policy_is_frozen_while_the_critic_warms_up() -> None:
    fakes = world()
    _run(_config(4, critic={"policy_freeze_steps": 2}), fakes)
    updates = [event for event in fakes.events if "update" in event]
    assert updates == [
        "critic.update 1",
        "critic.update 2",
        "critic.update 3",
        "policy.update 3",
        "critic.update 4",
        "policy.update 4",
    ]
    assert [event for event in fakes.events if event.startswith("push")] == ["push 1", "push 2", "push 3", "push 4"]


def test_a_commit_is_written_beside_the_next_step() -> None:
    """The one before is there when the next one begins, and the last one at the end."""
    fakes = world()
    fakes.journal.late = True
    _run(_config(2, train={"checkpoint_every": 1}), fakes)
    begun = [[f"commit {number}", "policy.save", "critic.save"] for number in (1, 2)]
    assert fakes.events == [*_step(1), *begun[0], *_step(2), *_finish(1), *begun[1], *_finish(2)]


def test_a_request_to_stop_ends_after_the_step_and_commits() -> None:
    fakes = world(stop_after=3)
    progress = _run(_config(9, train={"checkpoint_every": 100}), fakes)
    assert fakes.events == [*_step(1), *_step(2), *_step(3), *_commit(3)]
    assert progress.step == 3


def test_learners_get_the_scored_batch_with_advantages() -> None:
    """Rows are in the order of prompts and samples although the engines answer in another one."""
    fakes = world()
    fakes.engines.truncated = frozenset(f"p{i}/1" for i in range(7))
    config = _config(1)
    _run(config, fakes)
    (batch,) = fakes.policy.batches
    assert fakes.critic is not None and fakes.critic.batches[0] is batch
    assert batch.rewards.tolist() == [1.0, 2.0 - 1.0, 1.0, 2.0 - 1.0]  # a truncated answer pays the penalty
    assert batch.response_mask.sum(dim=1).tolist() == [2, 3, 2, 3]
    for tensor in (batch.old_logprobs, batch.ref_logprobs, batch.values, batch.advantages, batch.returns):
        assert tensor is not None and tensor.shape == batch.token_ids.shape
    assert batch.advantages is not None
    inside = batch.advantages[batch.loss_mask]
    torch.testing.assert_close(inside.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert isinstance(config.algorithm, PPOConfig) and fakes.policy.kl_coefs == [config.algorithm.kl_coef]
    table = fakes.journal.tables[1]
    assert [rollout.id for rollout in table] == [f"{p}/{s}" for p in fakes.prompts.taken[0] for s in (0, 1)]


def test_the_line_of_a_step_has_its_metrics_times_and_sentinels() -> None:
    fakes = world()
    _run(_config(2, train={"checkpoint_every": 1}), fakes)
    first, second = fakes.journal.lines[1], fakes.journal.lines[2]
    assert first[names.REWARD_MEAN] == 1.5 and first["reward/fake"] == 1.5 and first[names.QUARANTINED] == 0.0
    assert first[names.TOKENS] == 10.0 and first[names.LENGTH_MEAN] == 2.5
    assert first[names.POLICY_LOSS] == 0.5 and first[names.CRITIC_LOSS] == 0.25 and first[names.CHECKSUM_BUCKETS] == 1.0
    assert first[names.DRIFT_MAX] == 0.0 and first[names.REFERENCE_GAP] == 0.0
    assert names.REFERENCE_GAP not in second
    phases = {names.TIME_PHASE.format(phase=phase) for phase in names.PHASES}
    assert phases - first.keys() == {"time/commit"}, "a commit counts in the line of the step after it"
    assert phases <= second.keys()
    assert [name for step, name in fakes.journal.phases if step == 1] == list(names.PHASES)


def test_a_quarantined_rollout_stays_out_of_the_batch_and_on_record() -> None:
    first = world()
    _run(_config(1), first)
    victim = f"{first.prompts.taken[0][1]}/0"
    fakes = world(errors={victim: "judge: ValueError: no idea"})
    _run(_config(1), fakes)
    (batch,) = fakes.policy.batches
    assert batch.rewards.tolist() == [1.0, 2.0, 2.0]
    line = fakes.journal.lines[1]
    assert line[names.QUARANTINED] == 1.0 and line[names.REWARD_MEAN] == pytest.approx(5 / 3)
    (bad,) = [rollout for rollout in fakes.journal.tables[1] if rollout.score and rollout.score.error]
    assert bad.id == victim and len(fakes.journal.tables[1]) == 4
    ((kind, sentence),) = fakes.journal.said
    assert kind == "quarantine" and "judge: ValueError: no idea" in sentence and "1 of 4" in sentence


def test_a_step_without_any_score_is_an_error_with_the_first_reason() -> None:
    taken = world().prompts.take(2)
    errors = {f"{prompt.id}/{sample}": f"fault of {prompt.id}/{sample}" for prompt in taken for sample in (0, 1)}
    fakes = world(errors=errors)
    with pytest.raises(RuntimeError, match=f"all 4 rollouts .* fault of {taken[0].id}/0"):
        _run(_config(1), fakes)
    assert not fakes.policy.batches and not any("push" in event for event in fakes.events)


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_a_resumed_run_sees_the_prompts_of_an_unbroken_one(stop: int) -> None:
    """7 prompts, 2 a step: the sixth step crosses the border of an epoch. The state goes through JSON, as on disk."""
    changes = {"algorithm": {"kl_target": 0.5, "kl_horizon": 10}, "train": {"checkpoint_every": 1}}
    config = _config(7, **changes)
    whole = world()
    _run(config, whole)

    broken = world(stop_after=stop)
    _run(config, broken)
    resumed = world()
    algorithm = config.algorithm.make()
    progress = restore(resumed.roles, algorithm, json.loads(json.dumps(broken.journal.states[stop])))
    assert progress == Progress(stop, stop)
    resumed.engines.version = progress.version  # the controller pushes it before the loop goes on
    train(config, resumed.roles, algorithm, PAD, progress)

    assert broken.prompts.taken + resumed.prompts.taken == whole.prompts.taken
    assert broken.policy.kl_coefs + resumed.policy.kl_coefs == whole.policy.kl_coefs
    assert len(set(whole.policy.kl_coefs)) == 7, "the controller must move, or the line above shows nothing"
    assert resumed.events == whole.events[-len(resumed.events) :]
    assert resumed.journal.states[7] == whole.journal.states[7]


DPO = {"algorithm": {"type": "online_dpo", "beta": 0.3}, "critic": {"policy_freeze_steps": 99}}


def _without_critic(events: list[str]) -> list[str]:
    return [event for event in events if not event.startswith("critic")]


def test_online_dpo_runs_through_the_same_loop_without_a_critic() -> None:
    """Every answer is worth its sample number: the second sample of each prompt is chosen. Critic settings are
    ignored."""
    fakes = world(critic=False)
    progress = _run(_config(2, **DPO), fakes)
    assert fakes.events == _without_critic([*_step(1), *_step(2), *_commit(2)])
    assert progress == Progress(2, 2) and fakes.policy.kl_coefs == [0.3, 0.3]
    for step, batch in enumerate(fakes.policy.batches, start=1):
        assert batch.rewards.tolist() == [2.0, 1.0, 2.0, 1.0]
        assert batch.response_mask.sum(dim=1).tolist() == [3, 2, 3, 2] and batch.values is None
        lengths = [len(rollout.prompt.token_ids) for rollout in fakes.journal.tables[step][::2]]
        assert batch.response_mask.int().argmax(dim=1).tolist()[::2] == lengths, "pairs in the order of the prompts"
        line = fakes.journal.lines[step]
        assert line[names.WITHOUT_PREFERENCE] == 0.0 and line[names.BETA] == 0.3 and line[names.REWARD_MEAN] == 1.5
        assert not [name for name in line if "critic" in name] and names.KL_COEF not in line


def test_tokens_are_counted_as_sampled_not_as_trained_on() -> None:
    fakes = world(critic=False)
    _run(_config(1, **DPO, rollout={"samples_per_prompt": 4}), fakes)
    assert len(fakes.policy.batches[0]) == 4
    assert fakes.journal.lines[1][names.TOKENS] == 2 * (2 + 3 + 4 + 5)


def test_a_quarantined_answer_leaves_its_prompt_without_a_pair() -> None:
    first = world(critic=False)
    _run(_config(1, **DPO), first)
    victim = f"{first.prompts.taken[0][0]}/1"
    fakes = world(errors={victim: "no idea"}, critic=False)
    _run(_config(1, **DPO), fakes)
    (batch,) = fakes.policy.batches
    assert batch.loss_mask.any(dim=1).tolist() == [False, False, True, True]
    assert batch.rewards.tolist() == [1.0, 1.0, 2.0, 1.0]
    assert fakes.journal.lines[1][names.WITHOUT_PREFERENCE] == 1.0


def test_beta_goes_on_in_a_resumed_run() -> None:
    algorithm_config = {"type": "online_dpo", "kl_target": 0.5, "kl_horizon": 10}
    config = _config(4, algorithm=algorithm_config, train={"checkpoint_every": 1})
    whole, broken, resumed = world(critic=False), world(stop_after=2, critic=False), world(critic=False)
    _run(config, whole)
    _run(config, broken)
    algorithm = config.algorithm.make()
    progress = restore(resumed.roles, algorithm, json.loads(json.dumps(broken.journal.states[2])))
    resumed.engines.version = progress.version
    train(config, resumed.roles, algorithm, PAD, progress)
    assert broken.policy.kl_coefs + resumed.policy.kl_coefs == whole.policy.kl_coefs
    assert len(set(whole.policy.kl_coefs)) == 4 and resumed.journal.states[4] == whole.journal.states[4]


def test_a_checkpoint_that_holds_no_state_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold the state of a run"):
        restore(world().roles, _config(1).algorithm.make(), {"step": 1, "version": 1, "prompts": None, "algorithm": {}})
