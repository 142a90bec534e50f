"""Online DPO's loss, gradient and metrics are those of TRL's own trainer on the same token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.dpo import OnlineDPO, OnlineDPOConfig
from rlhf_ray.models.causal_lm import CausalLM, load_causal_lm
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.types import Batch

PROMPT_IDS = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
CHOSEN_IDS = [[10, 11, 12], [13, 14, 15, 16, 17], [18]]
REJECTED_IDS = [[20, 21], [22, 23, 24], [25, 26, 27, 28]]


def interleaved() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and response mask of the pairs above, chosen and rejected in turn."""
    rows = [
        (prompt, answer) for prompt, *both in zip(PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS, strict=True) for answer in both
    ]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    token_ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in rows])
    attention = torch.tensor([[t < len(p) + len(a) for t in range(width)] for p, a in rows])
    return token_ids, attention, torch.tensor([[len(p) <= t < len(p) + len(a) for t in range(width)] for p, a in rows])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy in `0`, another model of the same shape as the reference in `1`."""
    folder = tmp_path_factory.mktemp("tiny")
    for seed in (0, 1):
        tiny_model(folder / str(seed), seed=seed)
    return folder


def trl_loss(tiny: Path, loss: str, beta: float, out: Path) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """What TRL's own trainer computes: its loss, the gradient of every parameter, and its metrics."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt_ids": p, "chosen_ids": c, "rejected_ids": r}
        for p, c, r in zip(PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS, strict=True)
    ]
    config = DPOConfig(
        str(out), loss_type=[loss], beta=beta, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False
    )
    model = load_causal_lm(tiny / "0", torch.float32).train()  # it has no dropout
    trainer = DPOTrainer(
        model=model,
        ref_model=load_causal_lm(tiny / "1", torch.float32),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),  # it will not do without
        processing_class=AutoTokenizer.from_pretrained(tiny / "0"),
    )
    value = trainer._compute_loss(trainer.model, trainer.data_collator(rows), return_outputs=False)
    value.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return value.item(), grads, {name: values[0] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.1), ("sigmoid", 2.0), ("ipo", 0.3), ("hinge", 0.4)])
def test_loss_and_gradient_are_those_of_trl(tiny: Path, tmp_path: Path, loss: str, beta: float) -> None:
    """The same token ids at temperature 1, in float32."""
    expected, grads, measured = trl_loss(tiny, loss, beta, tmp_path)
    token_ids, attention, response = interleaved()
    policy = CausalLM(load_causal_lm(tiny / "0", torch.float32), temperature=1.0)
    reference = CausalLM(load_causal_lm(tiny / "1", torch.float32), temperature=1.0)
    logprobs, entropy = policy(token_ids, attention, response)
    batch = Batch(
        token_ids=token_ids,
        attention_mask=attention,
        response_mask=response,
        loss_mask=response,
        rollout_logprobs=logprobs.detach(),
        rewards=torch.zeros(6),
        truncated=torch.zeros(6, dtype=torch.bool),
        old_logprobs=logprobs.detach(),
        ref_logprobs=reference(token_ids, attention, response)[0].detach(),
    )
    dpo = OnlineDPO(OnlineDPOConfig.model_validate({"loss": loss, "beta": beta}))
    value, report = dpo.policy_loss(logprobs, entropy, batch, dpo.weights(batch), kl_coef=beta)
    torch.autograd.backward(value)
    assert value.item() == pytest.approx(expected, abs=1e-5)
    found = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    assert found.keys() == grads.keys() and len(found) > 10
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    assert max(float(grad.abs().max()) for grad in grads.values()) > 1e-3, "all zeros would agree too"
    ours = (names.TRAIN_ACCURACY, names.TRAIN_MARGIN, names.CHOSEN_REWARD, names.REJECTED_REWARD)
    theirs = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
    for mine, trls in zip(ours, theirs, strict=True):
        assert report.sums[mine] == pytest.approx(measured[trls], abs=1e-5), mine
