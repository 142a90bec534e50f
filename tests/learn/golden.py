"""The first steps of PPO and GRPO on a tiny model, as numbers: `python -m tests.learn.golden` writes `golden.json`.

A change of the code that moves them is a change of what is learned: write them again and say so in the changelog.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rlhf_ray import metrics as names
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.online_pipelines import PolicyOptimizationPipeline
from tests.builders import share_of_vowels

GOLDEN = Path(__file__).with_name("golden.json")
PROMPTS = ["name sun", "name moon", "find tree", "find cat"]
SHOWN = (
    names.REWARD_MEAN, names.KL_PER_TOKEN, names.POLICY_LOSS, names.GRAD_NORM.format(role="policy"), names.ENTROPY,
    names.CRITIC_LOSS, names.LENGTH_MEAN,
)  # fmt: skip
Curves = dict[str, list[dict[str, float]]]


def curves(folder: Path) -> Curves:
    """Four steps of each method."""
    tiny = tiny_model(folder / "tiny")
    found: Curves = {}
    for method in ("ppo", "grpo"):
        pipeline = PolicyOptimizationPipeline(
            str(tiny), lambda prompt, answer: share_of_vowels(prompt, answer, None), method,
            learning_rate=3e-3, max_new_tokens=12, seed=7, num_epochs=2, num_minibatches=2,
        )  # fmt: skip
        steps = pipeline.train_epoch(PROMPTS, 4)
        found[method] = [{name: step[name] for name in SHOWN if name in step} for step in steps]
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(curves(Path(scratch)), indent=1) + "\n")
