"""A tiny model must really learn: PPO with every actor and vLLM, on a toy reward, from a fixed seed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from rlhf_ray import metrics as names
from rlhf_ray.cluster import launch
from rlhf_ray.models.tiny import tiny_model
from tests.builders import run_config

STEPS = 20
THRESHOLD = 0.65
WORDS = ("sun", "moon", "tree", "house", "cat", "dog", "book", "story")


def test_ppo_teaches_a_tiny_model_to_write_vowels(tmp_path: Path) -> None:
    """The reward is the share of vowels among the characters of an answer, 0 for an empty one."""
    rows = [{"prompt": f"{verb} {word}"} for verb in ("name", "find") for word in WORDS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_config(
        tiny_model(tmp_path / "tiny"),
        tmp_path / "prompts.jsonl",
        policy={"learning_rate": 3e-3},
        critic={"learning_rate": 3e-3},
        algorithm={"num_epochs": 2, "num_minibatches": 2, "kl_coef": 0.0},
        reward={
            "sources": [{"type": "function", "path": "tests.builders:share_of_vowels"}],
            "truncated": {"mode": "score"},
        },
        rollout={"samples_per_prompt": 4, "max_concurrent": 32},
        train={"num_steps": STEPS, "prompts_per_step": 8, "checkpoint_every": STEPS},
    )
    launch(config, tmp_path / "run", resume=False, command="tests/learn")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [line[names.REWARD_MEAN] for line in lines]
    print("mean reward of each step:", " ".join(f"{reward:.2f}" for reward in rewards))
    assert rewards[0] < 0.35, f"the toy task must start far from solved, not at {rewards[0]:.2f}"
    assert statistics.fmean(rewards[-3:]) > THRESHOLD, rewards
