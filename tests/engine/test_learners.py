"""The learners on real DeepSpeed engines: any number of ranks and any ZeRO stage give the same update."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray import metrics as names
from rlhf_ray.models.tiny import tiny_model
from tests.builders import random_batch, run_config
from tests.distributed import on_ranks

ROWS, WIDTH, VOCABULARY = 12, 24, 256


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def _settings(learner: dict[str, Any], ranks: int, stage: int) -> dict[str, Any]:
    return {"num_workers": ranks, "deepspeed": {"zero_stage": stage}, "microbatch_tokens": 64, **learner}


def _train(
    rank: int, tiny: Path, out: Path, role: str, ranks: int, stage: int, learner: dict[str, Any], updates: int
) -> dict[str, float]:
    """`updates` updates from the start, or from `out/start` if that is there; then the whole state goes to `out`."""
    from rlhf_ray.actors.learner import CriticLearner, PolicyLearner

    config = run_config(tiny, algorithm={"num_minibatches": 2}, **{role: _settings(learner, ranks, stage)})
    start = out / "start" if (out / "start").exists() else None
    made: Any = (PolicyLearner if role == "policy" else CriticLearner)(config, tiny, out, start)
    metrics: dict[str, float] = {}
    first = made.engine.steps // 2
    for step in range(first, first + updates):
        batch = random_batch(ROWS, WIDTH, VOCABULARY, seed=step)
        metrics = made.update(batch, step, 0.1) if role == "policy" else made.update(batch, step)
    made.save(out / f"{role}-{ranks}-{stage}-{updates}").result()
    return metrics


def _state(folder: Path, role: str) -> dict[str, torch.Tensor]:
    state = folder / "state" / role
    return load_file(state / "trainable.safetensors") | load_file(state / "moments.safetensors")


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Float32 sums in another order. Adam's moments agree to a thousandth of the largest one of their tensor; a wrong
    denominator would be a factor. The weights agree to a twentieth of one step (learning rate 1e-3), because Adam
    divides a gradient of nearly 0 by its own size."""
    assert a.keys() == b.keys()
    for name in a:
        moment = name.endswith(("exp_avg", "exp_avg_sq"))
        limit = 1e-3 * float(a[name].abs().max()) if moment else 5e-5
        torch.testing.assert_close(a[name], b[name], atol=limit, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_two_ranks_and_every_zero_stage_make_the_update_of_one_rank(tiny: Path, tmp_path: Path, role: str) -> None:
    """Two updates of two minibatches each. A wrong denominator would hardly show in the weights (Adam divides it out),
    but it shows in the moments and in the loss."""
    learner: dict[str, Any] = {} if role == "policy" else {"init": "policy"}
    alone = on_ranks(1, _train, tiny, tmp_path, role, 1, 0, learner, 2)[0]
    expected = _state(tmp_path / f"{role}-1-0-2", role)
    for ranks, stage in ((2, 0), (2, 2), (2, 3)) if role == "policy" else ((2, 1), (2, 3)):
        shared = on_ranks(ranks, _train, tiny, tmp_path, role, ranks, stage, learner, 2)[0]
        _same(expected, _state(tmp_path / f"{role}-{ranks}-{stage}-2", role))
        for name, value in alone.items():
            assert shared[name] == pytest.approx(value, rel=2e-3, abs=1e-5), f"{name} on {ranks} ranks, stage {stage}"


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_state_goes_over_to_another_number_of_ranks(tiny: Path, tmp_path: Path, stage: int) -> None:
    """An update on two ranks, one on one, one on two again, each from what the one before has saved, are as three."""
    lora, split = {"lora": {"rank": 4}}, tmp_path / "split"
    on_ranks(1, _train, tiny, tmp_path / "whole", "policy", 1, stage, lora, 3)
    for ranks in (2, 1, 2):
        on_ranks(ranks, _train, tiny, split, "policy", ranks, stage, lora, 1)
        shutil.rmtree(split / "start", ignore_errors=True)
        (split / f"policy-{ranks}-{stage}-1").rename(split / "start")
    whole = _state(tmp_path / "whole" / f"policy-1-{stage}-3", "policy")
    _same(whole, _state(split / "start", "policy"))


def _saved_late(rank: int, tiny: Path, out: Path, ranks: int, stage: int) -> None:
    """Saves after an update; and again, but the disk is so slow that there is another update before it has written."""
    from rlhf_ray.actors.learner import PolicyLearner

    learner = PolicyLearner(run_config(tiny, policy=_settings({}, ranks, stage)), tiny, out, None)
    learner.update(random_batch(ROWS, WIDTH, VOCABULARY, seed=0), 0, 0.1)
    learner.save(out / f"soon-{stage}").result()
    slow = threading.Event()
    learner.beside.submit(slow.wait, 60)
    saving = learner.save(out / f"late-{stage}")
    learner.update(random_batch(ROWS, WIDTH, VOCABULARY, seed=1), 1, 0.1)
    slow.set()
    saving.result()
    learner.save(out / f"next-{stage}").result()


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_what_is_written_beside_an_update_is_the_state_before_it(
    tiny: Path, tmp_path: Path, ranks: int, stage: int
) -> None:
    on_ranks(ranks, _saved_late, tiny, tmp_path, ranks, stage)
    files = [f"state/policy/{name}.safetensors" for name in ("trainable", "moments")] + ["policy/model.safetensors"]
    for file in files:
        soon, late, after = ((tmp_path / f"{when}-{stage}" / file).read_bytes() for when in ("soon", "late", "next"))
        assert late == soon and late != after, file


def _poisoned(rank: int, tiny: Path, out: Path, ranks: int, stage: int) -> tuple[float, float, float, int]:
    """A batch with a NaN advantage between two good ones; how far the weights moved at each."""
    from rlhf_ray.actors.learner import PolicyLearner

    config = run_config(tiny, policy=_settings({}, ranks, stage))
    learner = PolicyLearner(config, tiny, out, None)

    def weights() -> torch.Tensor:
        whole = learner.engine.trainable_state()[0]  # on rank 0 only
        return torch.cat([torch.zeros(1), *(w.flatten() for w in whole.values())])

    moved = []
    for number in range(3):
        batch = random_batch(ROWS, WIDTH, VOCABULARY, seed=number)
        if number == 1:
            assert batch.advantages is not None
            row, column = batch.response_mask.nonzero()[-1].tolist()
            bad = batch.advantages.clone()
            bad[row, column] = float("nan")
            batch = replace(batch, advantages=bad)
        before = weights()
        metrics = learner.update(batch, number, 0.1)
        moved.append(float((weights() - before).abs().max()))
        assert metrics["policy/skipped_updates"] == float(number == 1)
    return moved[0], moved[1], moved[2], learner.engine.steps


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    tiny: Path, tmp_path: Path, ranks: int, stage: int
) -> None:
    answers = on_ranks(ranks, _poisoned, tiny, tmp_path, ranks, stage)
    first, poisoned, after, _ = answers[0]
    assert first > 1e-5 and after > 1e-5 and poisoned == 0.0
    assert {steps for *_, steps in answers} == {2}
    assert load_file(tmp_path / "quarantine" / "policy-step-000001-0.safetensors")["advantages"].isnan().any()


def _stopped(rank: int, tiny: Path, out: Path) -> dict[str, float]:
    from rlhf_ray.actors.learner import PolicyLearner

    algorithm = {"max_kl_to_old": 1e-9, "num_minibatches": 2}
    learner = PolicyLearner(run_config(tiny, algorithm=algorithm, policy=_settings({}, 1, 0)), tiny, out, None)
    return learner.update(random_batch(ROWS, WIDTH, VOCABULARY), 1, 0.1)


def test_an_update_that_stops_at_once_tells_what_it_saw(tiny: Path, tmp_path: Path) -> None:
    """With the engine's log-probs as the old ones that is their drift, by which they go out of use."""
    (metrics,) = on_ranks(1, _stopped, tiny, tmp_path)
    assert metrics["policy/updates"] == 0.0 and metrics["policy/skipped_updates"] == 0.0
    assert metrics[names.FIRST_DRIFT] > 0.1, "the random batch was not sampled from this policy"
    assert metrics[names.POLICY_KL_TO_OLD] > 1e-9


def _export(rank: int, tiny: Path, out: Path, ranks: int, stage: int) -> None:
    from rlhf_ray.actors.learner import PolicyLearner

    learner = PolicyLearner(run_config(tiny, policy=_settings({"lora": {"rank": 4}}, ranks, stage)), tiny, out, None)
    learner.update(random_batch(ROWS, WIDTH, VOCABULARY), 0, 0.1)
    learner.save(out / "saved").result()
    batch = random_batch(4, WIDTH, VOCABULARY, seed=5)
    rows, logprobs = learner.logprobs(batch)
    torch.save({"rows": rows, "logprobs": logprobs}, out / f"answers-{rank}.pt")


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_the_saved_policy_is_the_trained_one(tiny: Path, tmp_path: Path, ranks: int, stage: int) -> None:
    """Adapters are merged into a folder that transformers loads; its log-probs are those of the learner."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on_ranks(ranks, _export, tiny, tmp_path, ranks, stage)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "policy", dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved" / "policy").chat_template
    batch = random_batch(4, WIDTH, VOCABULARY, seed=5)
    with torch.no_grad():
        logits = model(batch.token_ids, attention_mask=batch.attention_mask.long()).logits[:, :-1]
    expected = torch.zeros(batch.token_ids.shape)
    expected[:, 1:] = torch.log_softmax(logits, -1).gather(-1, batch.token_ids[:, 1:, None])[..., 0]
    expected = torch.where(batch.response_mask, expected, 0.0)
    for rank in range(ranks):
        saved = torch.load(tmp_path / f"answers-{rank}.pt", weights_only=True)
        torch.testing.assert_close(saved["logprobs"], expected[saved["rows"]], atol=2e-5, rtol=1e-4)
