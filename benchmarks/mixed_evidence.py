"""Does a reward model learn more from a mixture of pairs, rankings and ratings than from as many labels of one kind?

    python benchmarks/mixed_evidence.py --labels 600 --seeds 3

Trains MiniLM on synthetic feedback of known quality (`data/synthetic.py`): once on a third of the labels of each kind,
and once on each kind alone, always with the same number of labels of the same noise, in the same number of steps. A
label is an answer that somebody judged: a pair has two, a ranking four, a rating one. With `--unit judgements` each
pair, ranking or rating counts as one, whatever it is about. Prints Kendall's tau between scores and true quality over
all held-out answers, of all prompts together, and the gain of the mixture over each kind, with 95 % intervals
(bootstrap over prompts, mean over seeds).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import kendalltau

from rlhf_ray.data.feedback import FeedbackConfig
from rlhf_ray.data.shapes import parse
from rlhf_ray.data.synthetic import create_preference_data, heldout_answers, known_kind
from rlhf_ray.evidence import Item
from rlhf_ray.machine import cpu_cores
from rlhf_ray.preference_api import PreferenceDataset, RewardModelInference, RewardModelTrainer, create_reward_model

KINDS = ("mixed", "pairs", "rankings", "ratings")
ANSWERS_OF_ONE = {"pairs": 2, "rankings": 4, "ratings": 1}
BATCH = 32
"""Labels in a step."""
PROMPTS, ANSWERS, SAMPLES = 60, 8, 500
Scored = tuple[np.ndarray, np.ndarray]
"""Scores and true qualities, `[prompts, answers]`."""


def main() -> None:
    """Runs every kind with every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=600)
    parser.add_argument("--unit", choices=["answers", "judgements"], default="answers")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--base", default="minilm-l6")
    asked = parser.parse_args()
    torch.set_num_threads(cpu_cores())
    found: dict[str, list[Scored]] = defaultdict(list)
    for seed in range(asked.seeds):
        for kind in KINDS:
            found[kind].append(_train(kind, asked, seed))
            print(f"seed {seed}, {kind}: tau {_tau(found[kind][-1], np.arange(PROMPTS)):.3f}", flush=True)
    for kind in KINDS:
        print(json.dumps({"kind": kind, "tau": _interval(lambda rows, k=kind: _mean(found[k], rows))}), flush=True)
    for kind in KINDS[1:]:
        gain = _interval(lambda rows, k=kind: _mean(found["mixed"], rows) - _mean(found[k], rows))
        print(json.dumps({"mixed_minus": kind, "gain": gain}), flush=True)


def _train(kind: str, asked: argparse.Namespace, seed: int) -> Scored:
    items = _items(kind, asked, seed)
    model = create_reward_model("joint", asked.base, max_tokens=128, seed=seed)
    data = PreferenceDataset(items, model.encoder)
    steps = -(-asked.labels // BATCH)
    trainer = RewardModelTrainer(model, total_steps=asked.epochs * steps, learning_rate=1e-4)
    for epoch in range(asked.epochs):
        for batch in data.batches(batch_size=-(-len(items) // steps), seed=1000 * seed + epoch):
            trainer.train_step(batch)
    heldout = heldout_answers(PROMPTS, ANSWERS, seed=seed)
    model.eval()
    scores = RewardModelInference(model).batch_predict([(one.prompt, text) for one in heldout for text in one.answers])
    return np.reshape(scores, (PROMPTS, ANSWERS)), np.array([one.qualities for one in heldout])


def _items(kind: str, asked: argparse.Namespace, seed: int) -> list[Item]:
    parts = KINDS[1:] if kind == "mixed" else (kind,)
    items: list[Item] = []
    for part in parts:
        of_one = ANSWERS_OF_ONE[part] if asked.unit == "answers" else 1
        samples = round(asked.labels / len(parts) / of_one)
        rows = create_preference_data(samples, kind=known_kind(part), label_noise=asked.noise, seed=seed)
        config = FeedbackConfig(path="synthetic", max_tokens=128)
        items += [item for number, row in enumerate(rows, 1) for item in parse(row, f"{part}, row {number}", config)]
    return items


def _tau(scored: Scored, rows: np.ndarray) -> float:
    scores, qualities = scored
    return float(kendalltau(scores[rows].ravel(), qualities[rows].ravel()).statistic)


def _mean(runs: Sequence[Scored], rows: np.ndarray) -> float:
    return float(np.mean([_tau(run, rows) for run in runs]))


def _interval(figure: Callable[[np.ndarray], float]) -> list[float]:
    """The figure, and the ends of its 95 % interval."""
    draw = np.random.default_rng(0)
    samples = [figure(draw.integers(0, PROMPTS, PROMPTS)) for _ in range(SAMPLES)]
    return [round(x, 3) for x in (figure(np.arange(PROMPTS)), *np.quantile(samples, (0.025, 0.975)))]


if __name__ == "__main__":
    main()
