"""Saved reward models: they score the same, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_ray.config import LoraConfig
from rlhf_ray.errors import UserError
from rlhf_ray.models.folder import check_critic_init, check_reward_model, count_parameters, max_positions
from rlhf_ray.models.reward.saving import load_reward_network, save_reward_model
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.models.value import load_value_model
from tests.unit.reward_networks import (
    CONVERSATIONS,
    MAKES,
    made,
    reward_spec,
    scale_of,
    stirred,
)


@pytest.mark.parametrize("backbone", ["decoder", "encoder"])
@pytest.mark.parametrize("make", list(MAKES))
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)], ids=["full", "lora"])
def test_a_saved_model_scores_the_same(
    bases: dict[str, Path], tmp_path: Path, backbone: str, make: str, lora: LoraConfig | None
) -> None:
    spec = reward_spec(backbone, make)
    network, encoder = made(bases[backbone], spec, lora=lora)
    stirred(network).eval()
    stats = scale_of(network, encoder)
    before = RewardScorer(network, encoder, stats)
    save_reward_model(tmp_path / "m", network, encoder.tokenizer, stats)
    check_reward_model(tmp_path / "m")
    after = RewardScorer.load(tmp_path / "m")
    scores = before.score(CONVERSATIONS)
    assert after.score(CONVERSATIONS) == pytest.approx(scores, abs=1e-5)
    assert after.raw_scores(CONVERSATIONS) == pytest.approx([s * stats.std + stats.mean for s in scores], abs=1e-5)
    assert sum(scores) == pytest.approx(0, abs=1e-3) and sum(s * s for s in scores) == pytest.approx(5, abs=1e-2)
    # padding, batch and order
    assert [after.score([c])[0] for c in CONVERSATIONS] == pytest.approx(scores, abs=1e-4)
    assert after.score(CONVERSATIONS[::-1], token_budget=1)[::-1] == pytest.approx(scores, abs=1e-4)
    # training goes on with the adapters in place
    assert before.score(CONVERSATIONS) == pytest.approx(scores, abs=1e-6)
    details = after.details(CONVERSATIONS)
    assert [d.total for d in details] == pytest.approx(scores, abs=1e-5)
    assert all((d.uncertainty > 0) == (spec.members > 1) and tuple(d.objectives) == spec.objectives for d in details)
    assert not list((tmp_path / "m").rglob("*.bin")) and not list((tmp_path / "m").rglob("adapter*"))
    assert (tmp_path / "m" / "reward_model.json").exists() != spec.plain


def test_saved_numbers_come_back(bases: dict[str, Path], tmp_path: Path) -> None:
    network, encoder = made(bases["encoder"], reward_spec("encoder", "all"))
    stats = scale_of(stirred(network), encoder)
    save_reward_model(tmp_path / "m", network, encoder.tokenizer, stats)
    loaded, _, found = load_reward_network(tmp_path / "m")
    assert loaded.spec == network.spec and found == stats
    state = loaded.state_dict()
    assert state.keys() == network.state_dict().keys() and network.offsets.abs().sum() > 0
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert count_parameters(tmp_path / "m") == sum(value.numel() for value in state.values())
    assert max_positions(tmp_path / "m") is None


def test_a_missing_part_is_named(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    network, encoder = made(bases["encoder"], reward_spec("encoder", "separate"))
    save_reward_model(folder, network, encoder.tokenizer, scale_of(network, encoder))
    heads = load_file(folder / "heads.safetensors")

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            RewardScorer.load(folder)

    save_file({**heads, "heads.weight": torch.zeros(1, 2, 128)}, folder / "heads.safetensors")
    refused(r"does not fit.*heads\.weight")
    save_file({k: v for k, v in heads.items() if k != "heads.bias"}, folder / "heads.safetensors")
    refused(r"does not fit.*heads\.bias")
    (folder / "heads.safetensors").write_bytes(b"12345678")
    refused("not a complete safetensors file")
    with pytest.raises(UserError, match="not a complete safetensors file"):
        check_reward_model(folder)
    (folder / "heads.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no heads\.safetensors"):
        check_reward_model(folder)
    (folder / "prompt-0").rename(folder / "elsewhere")
    refused("prompt-0, a part of the reward model, is missing")
    with pytest.raises(UserError, match=r"prompt-0.*has no config\.json"):
        check_reward_model(folder)
    (folder / "reward_model.json").write_text('{"version": 2}')
    refused(r"reward_model\.json: does not describe")


def test_a_critic_starts_from_a_plain_model_only(bases: dict[str, Path], tmp_path: Path) -> None:
    for make in ("plain", "heads"):
        network, encoder = made(bases["decoder"], reward_spec("decoder", make))
        save_reward_model(tmp_path / make, network, encoder.tokenizer, scale_of(network, encoder))
    check_critic_init(tmp_path / "plain")
    load_value_model(tmp_path / "plain", "reward")
    for refuses in (check_critic_init, lambda folder: load_value_model(folder, "reward")):
        with pytest.raises(UserError, match=r"critic\.init = reward.*3 members.*critic\.init=policy"):
            refuses(tmp_path / "heads")
