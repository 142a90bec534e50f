"""The whole loop: a served policy, what people say about it, DPO on that, its gate, a canary, a promotion."""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlhf_ray.models.tiny import tiny_model
from tests.serving_process import Running, serving

PREFERENCES = 200
PROMPTS = [f"tell me about {thing}" for thing in ("the sun", "a tree", "the city", "a book", "the sea", "a dog")]
DPO = [
    "model.path=tiny", "lora=null", "train.learning_rate=5e-4", "train.max_steps=100", "train.batch_size=8",
    "train.cpus_per_worker=0.5", "method.loss=sigmoid", "method.label_smoothing=0.0", "data.heldout_fraction=0.4",
    "gate.min_accuracy=0.4",  # some 80 held-out pairs: the interval is 20 points wide
]  # fmt: skip
TEMPERATURE = 0.25  # of what the model says at 1, 200 preferences name hardly any token twice


def test_what_people_prefer_is_served_in_the_end(tmp_path: Path) -> None:
    """These people like vowels. The promoted policy says more of them than the one that they talked to."""
    tiny_model(tmp_path / "tiny")
    with serving(tmp_path, "tiny") as running:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda number: _compare(running, number), range(PREFERENCES))) == PREFERENCES
        before = _mean(running)
    done = running.command("feedback", "export", "feedback.jsonl", "--store", "serving.sqlite")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text().splitlines()]
    assert len(rows) > PREFERENCES / 2 and all(len(row["reply_ids"]) == 2 for row in rows)
    assert running.command("data", "check", "feedback.jsonl", "--model", "tiny").returncode == 0
    words = ["train", "dpo_from_feedback.yaml", "data.path=feedback.jsonl", *DPO, "--run-dir", "run"]
    done = running.command(*words, seconds=600)
    assert done.returncode == 0, done.stderr
    card = next((tmp_path / "run").glob("checkpoints/*/policy/README.md")).read_text()
    assert f"{len(rows)} statements by 3 annotators about" in card and f"`{rows[0]['policy_versions'][0]}` (" in card
    strict = tmp_path / "run" / "config.yaml"
    kept = strict.read_text()
    strict.write_text(kept.replace("min_accuracy: 0.4", "min_accuracy: 1.0"))
    refused = running.command("serve", "run", "--port", "0", "--store", "serving.sqlite")
    assert refused.returncode == 3 and "held-out accuracy" in refused.stderr, refused.stderr
    strict.write_text(kept)
    with serving(tmp_path, "tiny", "--canary", "run", "--weight", "0.5") as running:
        promoted = running.command("serve", "promote", "--url", running.address)
        assert json.loads(promoted.stdout)["stable"]["source"] == "run", promoted.stderr
        after = _mean(running)
    print(f"share of vowels: {before:.3f} before, {after:.3f} after")
    assert after > before + 0.02, (before, after)


def _compare(running: Running, number: int) -> bool:
    """Two replies to one prompt, and which of them is better."""
    prompt = PROMPTS[number % len(PROMPTS)]
    (first, a), (second, b) = (_reply(running, prompt, 2 * number + side) for side in (0, 1))
    choice = "tie" if vowels(a) == vowels(b) else "a" if vowels(a) > vowels(b) else "b"
    body = {"reply_ids": [first, second], "choice": choice, "annotator": f"person {number % 3}"}
    return running.post("/v1/preferences", body).status_code == 201


def _reply(running: Running, prompt: str, seed: int) -> tuple[str, str]:
    said = [{"role": "user", "content": prompt}]
    body = {"model": "policy", "messages": said, "max_tokens": 12, "seed": seed, "temperature": TEMPERATURE}
    reply = running.post("/v1/chat/completions", body).json()
    return reply["id"], reply["choices"][0]["message"]["content"]


def _mean(running: Running) -> float:
    asked = [(prompt, 10_000 + seed) for prompt in PROMPTS for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        return statistics.fmean(vowels(text) for _, text in pool.map(lambda words: _reply(running, *words), asked))


def vowels(text: str) -> float:
    """The share of vowels."""
    return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))
