"""The online loop on one screen: prompt -> rollout -> reward -> advantage -> update -> weight push -> commit.

It knows ports only (`ports.py`). What a step cost is in `metrics.jsonl`; where it ran is decided in `actors/build.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf_ray.accounting import StepClock, in_order, quarantine_note, rollout_metrics
from rlhf_ray.config import RunConfig
from rlhf_ray.data.batching import collate, prompt_numbers
from rlhf_ray.ports import Algorithm, Metrics, Roles, State
from rlhf_ray.sentinels import Sentinels
from rlhf_ray.types import Batch


@dataclass
class Progress:
    """Where a run stands: steps done, and the version that the engines hold (one more with every push)."""

    step: int = 0
    version: int = 0


def train(config: RunConfig, roles: Roles, algorithm: Algorithm, pad_token_id: int, progress: Progress) -> None:
    """Runs the steps after `progress.step`, in place. The engines must hold the policy's weights as its version."""
    sentinels, clock, critic = Sentinels(config, roles.journal), StepClock(roles), roles.critic
    stopping = roles.should_stop()
    while progress.step < config.train.num_steps and not stopping:
        step = progress.step + 1
        clock.start(step)
        training = step > config.policy_freeze_steps

        prompts = roles.prompts.take(config.train.prompts_per_step)
        with clock("generate"):
            scoring = roles.reward.submit(roles.rollout.generate(prompts, config.rollout.samples_per_prompt, step))
        with clock("score"):
            rollouts, quarantined = in_order(prompts, scoring())
        if quarantined:
            roles.journal.event("quarantine", quarantine_note(step, rollouts, quarantined), step=step)
        roles.journal.rollouts(step, rollouts + quarantined)  # if the step fails from here on, `replay` can do it again
        batch = collate(rollouts, pad_token_id, config.reward.truncated.mode, config.reward.truncated.penalty)

        with clock("logprobs"):
            batch = estimated(roles, batch)
        checked = sentinels.check_batch(step, batch)
        with clock("advantages"):
            batch, metrics = algorithm.advantages(batch, prompt_numbers(rollouts), adapt=training)
        with clock("update"):
            updates: list[Callable[[], Metrics]] = [lambda: critic.update(batch, step)] if critic else []
            if training:
                updates.append(lambda: roles.policy.update(batch, step, algorithm.kl_coef))
            for found in roles.together(*updates):
                metrics |= found
        with clock("push"):
            metrics |= roles.weights.push(progress.version + 1)

        progress.step, progress.version = step, progress.version + 1
        metrics |= rollout_metrics(rollouts, quarantined) | checked
        roles.journal.metrics(step, metrics | clock.metrics())
        sentinels.check_update(step, metrics)
        stopping = roles.should_stop()
        if step % config.train.checkpoint_every == 0 or step == config.train.num_steps or stopping:
            with clock("commit"):
                commit(roles, progress, algorithm)
    roles.journal.settle()


def estimated(roles: Roles, batch: Batch) -> Batch:
    """The batch with the log-probs of policy and reference, and values if there is a critic."""
    critic = roles.critic
    asked = [lambda: roles.policy.logprobs(batch), lambda: roles.reference.logprobs(batch)]
    if critic is not None:
        asked.append(lambda: critic.values(batch))
    return batch.with_(**dict(zip(("old_logprobs", "ref_logprobs", "values"), roles.together(*asked), strict=False)))


def commit(roles: Roles, progress: Progress, algorithm: Algorithm) -> None:
    """Everything that a resumed run needs, in one atomic directory, which is written beside the next step."""
    state: State = {
        "step": progress.step,
        "version": progress.version,
        "prompts": roles.prompts.state_dict(),
        "algorithm": algorithm.state_dict(),
    }
    roles.journal.commit_beside(progress.step, state, roles.save, roles.committed)


def restore(roles: Roles, algorithm: Algorithm, state: Mapping[str, object]) -> Progress:
    """Puts the loop's own state back; the learners restore theirs from the same directory."""
    prompts, learned = state["prompts"], state["algorithm"]
    if not isinstance(prompts, Mapping) or not isinstance(learned, Mapping):
        raise ValueError("the checkpoint's manifest does not hold the state of a run")
    roles.prompts.load_state_dict(prompts)
    algorithm.load_state_dict(learned)
    return Progress(int(str(state["step"])), int(str(state["version"])))
