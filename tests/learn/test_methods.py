"""Every online method teaches a tiny model a toy task, in this process: the real loop, losses and learners."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray import metrics as names
from rlhf_ray.errors import UserError
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.online_pipelines import PolicyOptimizationPipeline, PPOTrainer
from tests.builders import share_of_vowels

STEPS, THRESHOLD = 20, 0.6
PROMPTS = [f"{verb} {word}" for verb in ("name", "find") for word in ("sun", "moon", "tree", "cat")]
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"num_epochs": 2, "num_minibatches": 2},
    "grpo": {"num_epochs": 2, "num_minibatches": 2},
    "rloo": {"num_epochs": 2, "num_minibatches": 2},
    "trpo": {"max_kl": 0.3, "damping": 1.0, "num_epochs": 2},  # a step of 32 short answers is mostly noise without
    "reinforce": {"num_minibatches": 4},
    "reinforce_pp": {"num_epochs": 2, "num_minibatches": 2},
    "gspo": {"num_epochs": 2, "num_minibatches": 2, "clip_range": 0.05, "clip_range_high": 0.05},
    "cispo": {"num_epochs": 2, "num_minibatches": 2},
    "dpo": {"num_epochs": 2, "beta": 0.1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def _pipeline(tiny: Path, method: str, **changes: Any) -> PolicyOptimizationPipeline:
    settings = {"learning_rate": 3e-3, "max_new_tokens": 12, **METHODS[method], **changes}
    if method != "dpo":
        settings.setdefault("kl_coef", 0.0)
    return PolicyOptimizationPipeline(str(tiny), _vowels, method, **settings)


def _vowels(prompt: str, answer: str) -> float:
    return share_of_vowels(prompt, answer, None)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_tiny_model_learns_to_write_vowels(tiny: Path, method: str, seed: int) -> None:
    steps = _pipeline(tiny, method, seed=seed).train_epoch(PROMPTS, STEPS)
    rewards = [step[names.REWARD_MEAN] for step in steps]
    print(f"{method}, seed {seed}:", " ".join(f"{reward:.2f}" for reward in rewards))
    assert rewards[0] < 0.35, f"the toy task must start far from solved, not at {rewards[0]:.2f}"
    assert statistics.fmean(rewards[-3:]) > THRESHOLD, rewards
    assert max(step[names.DRIFT_MAX] for step in steps) < 1e-3, "the sampler and the learner disagree"


def test_trpo_takes_one_step_of_the_policy_and_as_many_of_the_critic_as_asked(tiny: Path) -> None:
    (step,) = _pipeline(tiny, "trpo", num_epochs=3, num_minibatches=2).train_epoch(PROMPTS)
    assert step["policy/updates"] == 1.0 and step["critic/updates"] == 6.0


def test_two_runs_with_one_seed_are_the_same_bit_for_bit(tiny: Path) -> None:
    timed = ("time/", "busy/")
    runs = [
        [
            {name: value for name, value in step.items() if not name.startswith(timed)}
            for step in _pipeline(tiny, "grpo", seed=5).train_epoch(PROMPTS, 3)
        ]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_it_goes_on_where_it_stopped_and_saves_what_loads(tiny: Path, tmp_path: Path) -> None:
    pipeline = _pipeline(tiny, "rloo", lora_rank=4)
    assert [step["step"] for step in pipeline.train_epoch(PROMPTS, 2)] == [1, 2]
    assert [step["step"] for step in pipeline.train_epoch(["another one"], 1)] == [3]
    saved = pipeline.save(tmp_path / "policy")
    again = PolicyOptimizationPipeline(str(saved), lambda prompt, answer: 0.0, "grpo", max_new_tokens=4, kl_coef=0.0)
    (step,) = again.train_epoch(PROMPTS)
    assert step["policy/grad_norm"] == 0.0, "all rewards are equal: nothing may be learned from them"


def test_a_ppo_step_on_given_answers_moves_towards_the_better_one(tiny: Path) -> None:
    trainer = PPOTrainer(str(tiny), learning_rate=3e-3, clip_epsilon=0.3, kl_coef=0.0, num_epochs=2)
    answers = ["a e i o u", "k l m n p"]
    for _ in range(6):
        step = trainer.train_step(["name sun", "name sun"], answers, [1.0, -1.0])
    assert step[names.REWARD_MEAN] == 0.0 and step["policy/updates"] == 2.0 and "critic/loss" in step
    good, bad = (_mean_logprob(trainer, answer) for answer in answers)
    before = [_mean_logprob(PPOTrainer(str(tiny)), answer) for answer in answers]
    assert good - before[0] > bad - before[1]
    with pytest.raises(UserError, match=r"reward of response 1 is not a finite number.*give rewards"):
        trainer.train_step(["name sun"], ["a"])
    with pytest.raises(UserError, match="as many responses"):
        trainer.train_step(["name sun"], ["a", "b"], [1.0, 1.0])


def test_given_answers_weigh_as_if_the_policy_had_sampled_them_and_steps_are_counted_on(tiny: Path) -> None:
    pipeline = _pipeline(tiny, "grpo", importance="token")
    step = pipeline.train_step(["name sun", "name sun"], ["a e i", "k l m"], [1.0, 0.0])
    assert step["importance/mean"] == pytest.approx(1.0)
    assert [one["step"] for one in pipeline.train_epoch(PROMPTS, 2)] == [2, 3]


def _mean_logprob(trainer: PPOTrainer, answer: str) -> float:
    start = trainer._prompts(["name sun"])[0].token_ids
    ids = trainer._tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = trainer.model(torch.tensor([[*start, *ids]])).logits[0, len(start) - 1 : -1]
    return float(torch.log_softmax(logits, dim=1)[torch.arange(len(ids)), torch.tensor(ids)].mean())


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("trpo2", {}, "trpo2"),
        ("grpo", {"samples_per_prompt": 1}, "needs at least 2"),
        ("grpo", {"klcoef": 1.0}, "algorithm.klcoef: unknown key; did you mean kl_coef"),
    ],
)
def test_a_method_or_setting_that_does_not_fit_is_refused(
    tiny: Path, method: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        PolicyOptimizationPipeline(str(tiny), lambda prompt, answer: 0.0, method, **settings)
