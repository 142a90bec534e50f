"""The whole loop with the commands of docs/serving.md, in their order: a served policy, what people say about it, DPO
on that, its gate, a canary, a promotion."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlhf_ray.models.tiny import tiny_model
from tests.serving_process import Running, serving

GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
PREFERENCES = 200
PROMPTS = [f"tell me about {thing}" for thing in ("the sun", "a tree", "the city", "a book", "the sea", "a dog")]
DPO = [
    "model.path=runs/demo", "lora=null", "train.learning_rate=2e-4", "train.max_steps=100", "train.batch_size=8",
    "train.cpus_per_worker=0.5", "method.loss=sigmoid", "method.label_smoothing=0.0", "data.heldout_fraction=0.2",
    "gate.min_accuracy=0.25",  # a random model: what it learns on five prompts tells little about the one held out
]  # fmt: skip
TEMPERATURE = 0.25  # of what the model says at 1, 200 preferences name hardly any token twice


def test_what_people_prefer_is_served_in_the_end(tmp_path: Path) -> None:
    """These people like vowels. The promoted policy says more of them than the one that they talked to."""
    tiny_model(tmp_path / "runs" / "demo")
    guide = GUIDE.read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for block in _blocks(guide, "bash") for line in block.splitlines() if line]
    serve, add, listed, export, check, train, canary, status, promote, rollback = commands
    with serving(tmp_path, *serve[1:]) as running:
        keys = [running.command(*words).stdout for words in (add, listed)]
        assert keys[0].startswith("rk-") and "alice" in keys[1]
        _run_python(_blocks(guide, "python")[0], running)
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda number: _compare(running, number), range(PREFERENCES))) == PREFERENCES
        before = _mean(running)
    for words in (export, [*check, "--model", "runs/demo"], [*train, *DPO]):
        done = running.command(*words, seconds=600)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "feedback.jsonl").read_text().splitlines()]
    assert len(rows) > PREFERENCES / 2 and all(len(row["reply_ids"]) == 2 for row in rows)
    run = tmp_path / "runs" / "from-feedback"
    card = next(run.glob("checkpoints/*/policy/README.md")).read_text()
    assert f"{len(rows)} statements by 3 annotators about" in card and f"`{rows[0]['policy_versions'][0]}` (" in card
    kept = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(kept.replace("min_accuracy: 0.25", "min_accuracy: 1.0"))
    refused = running.command("serve", "runs/from-feedback", "--port", "0")
    assert refused.returncode == 3 and "held-out accuracy" in refused.stderr, refused.stderr
    (run / "config.yaml").write_text(kept)
    with serving(tmp_path, *canary[1:]) as running:
        at = ["--url", running.address]
        shown, promoted = (json.loads(running.command(*words, *at).stdout) for words in (status, promote))
        assert shown["canary"]["source"] == promoted["stable"]["source"] == "runs/from-feedback"
        assert shown["weight"] == 0.1
        after = _mean(running)
        assert json.loads(running.command(*rollback, *at).stdout)["stable"]["source"] == "runs/demo"
    print(f"share of vowels: {before:.3f} before, {after:.3f} after")
    assert after > before + 0.02, (before, after)


def _blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide, re.DOTALL)


def _run_python(source: str, running: Running) -> None:
    """The guide's, with this service's address and key."""
    here = source.replace("http://127.0.0.1:8000", running.address).replace("rk-...", running.key)
    assert here.count(running.address) == here.count(running.key) == 1
    said = "\nprint(reply.choices[0].finish_reason)"
    done = subprocess.run([sys.executable, "-c", here + said], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() in ("stop", "length"), done.stderr


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
