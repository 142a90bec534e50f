"""Every architecture: its arithmetic by hand, and its gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf_ray.algorithms.evidence_loss import mixed_loss
from rlhf_ray.config import LoraConfig, RewardModelConfig
from rlhf_ray.errors import UserError
from rlhf_ray.models.reward.batch import collate, encode_items, token_batch
from rlhf_ray.models.reward.build import backbone_kind, spec_for
from tests.unit.reward_networks import (
    CONVERSATIONS,
    EXTRAS,
    MAKES,
    TWO,
    evidence,
    made,
    reward_spec,
    stirred,
)


@torch.no_grad()
def test_a_joint_decoder_is_a_linear_map_of_the_last_token(bases: dict[str, Path]) -> None:
    from transformers import AutoModel

    network, encoder = made(bases["decoder"], reward_spec("decoder", "gate"))
    stirred(network)
    rows = encoder(CONVERSATIONS)
    output = network(token_batch(rows, encoder.padding))
    backbone = AutoModel.from_pretrained(bases["decoder"])
    backbone.load_state_dict(network.backbones[0].state_dict())
    assert network.gate is not None
    for i, row in enumerate(rows):
        hidden = backbone(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
        scores = network.heads.weight[0] @ hidden[-1]
        prompt = hidden[row.prompt_length - 1]
        normal = (prompt - prompt.mean()) / (prompt.var(correction=0) + 1e-5).sqrt()
        gate = torch.softmax(network.gate.weight[0] @ normal + network.gate.bias[0], dim=0)
        assert torch.allclose(output.scores[i, 0], scores, atol=1e-5)
        assert torch.allclose(output.gate[i, 0], gate, atol=1e-5)
        assert torch.allclose(output.totals[i, 0], (gate * scores).sum(), atol=1e-5)


@torch.no_grad()
def test_a_joint_encoder_takes_the_mean(bases: dict[str, Path]) -> None:
    from transformers import AutoModel

    network, encoder = made(bases["encoder"], reward_spec("encoder", "weights"))
    output = network(token_batch(encoder(CONVERSATIONS), encoder.padding))
    backbone = AutoModel.from_pretrained(bases["encoder"])
    for i, row in enumerate(encoder(CONVERSATIONS)):
        types = torch.tensor([[0] * row.prompt_length + [1] * (len(row) - row.prompt_length)])
        hidden = backbone(input_ids=torch.tensor([row.ids]), token_type_ids=types).last_hidden_state[0]
        scores = network.heads.weight[0] @ hidden.mean(dim=0)
        assert torch.allclose(output.scores[i, 0], scores, atol=1e-5)
        assert torch.allclose(output.totals[i, 0], 0.75 * scores[0] + 0.25 * scores[1], atol=1e-5)


@torch.no_grad()
def test_a_separate_model_joins_both_sides(bases: dict[str, Path]) -> None:
    from transformers import AutoModel

    network, encoder = made(bases["encoder"], reward_spec("encoder", "separate"))
    stirred(network)
    output = network(token_batch(encoder(CONVERSATIONS), encoder.padding))
    sides = []
    for part in (network.prompt_backbones[0], network.backbones[0]):
        backbone = AutoModel.from_pretrained(bases["encoder"])
        backbone.pooler = None
        backbone.load_state_dict(part.state_dict())
        sides.append(backbone.eval())
    for i, row in enumerate(encoder(CONVERSATIONS)):
        u, v = (
            torch.nn.functional.layer_norm(side(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0), (128,))
            for side, ids in zip(sides, (row.prompt_ids, row.ids), strict=True)
        )
        features = torch.cat([u, v, u * v, (u - v).abs()])
        hidden = torch.tanh(network.heads.inner[0] @ features + network.heads.bias[0])
        assert torch.allclose(output.scores[i, 0], network.heads.weight[0] @ hidden, atol=1e-5)


@torch.no_grad()
def test_the_conservative_score_is_the_mean_minus_sigma_deviations(bases: dict[str, Path]) -> None:
    network, _ = made(bases["decoder"], reward_spec("decoder", "heads"))
    totals = torch.tensor([[1.0, 2.0, 6.0], [1.0, 1.0, 1.0]])
    deviation = ((4 + 1 + 9) / 3) ** 0.5
    assert network.conservative(totals).tolist() == pytest.approx([3 - 0.5 * deviation, 1.0])
    network.align(totals)
    assert network.offsets.tolist() == pytest.approx([1 - 13 / 6 + 1 / 6, 1.5 - 2, 3.5 - 2], abs=1e-6)


def test_members_start_apart_and_the_seed_decides(bases: dict[str, Path]) -> None:
    first, again, other = (made(bases["decoder"], reward_spec("decoder", "heads"), seed=s)[0] for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    weights = first.heads.weight
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights, other.heads.weight)
    assert float(weights.detach().std()) == pytest.approx(129**-0.5, rel=0.15)


@pytest.mark.parametrize("backbone", ["decoder", "encoder"])
@pytest.mark.parametrize("make", list(MAKES))
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)], ids=["full", "lora"])
def test_everything_trainable_gets_a_gradient(
    bases: dict[str, Path], backbone: str, make: str, lora: LoraConfig | None
) -> None:
    spec = reward_spec(backbone, make, **EXTRAS)
    network, encoder = made(bases[backbone], spec, lora=lora)
    batch = collate(encode_items(evidence(spec.objectives), encoder), encoder)
    output = network(batch.tokens)
    whole = float(batch.items.weight.sum())
    mixed_loss(output.scores, output.totals, batch.items, output.links, {}, 0.01, whole).backward()
    missing = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    if lora is not None:
        assert not [name for name in frozen if not name.startswith(("backbones", "prompt_backbones"))]
        assert not [
            n for n, p in network.named_parameters() if "backbones" in n and p.requires_grad and "lora" not in n
        ]
    else:
        assert all("embed_tokens" in name for name in frozen) and bool(frozen) == (backbone == "decoder")


@pytest.mark.parametrize("rows", [slice(3, 4), slice(0, 1), slice(5, 7)])
def test_every_microbatch_reaches_every_learned_number(bases: dict[str, Path], rows: slice) -> None:
    network, encoder = made(bases["encoder"], reward_spec("encoder", "gate"))
    batch = collate(encode_items(evidence(TWO)[rows], encoder), encoder)
    output = network(batch.tokens)
    mixed_loss(output.scores, output.totals, batch.items, output.links, {}, 0.01, 1.0).backward()
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


def test_thresholds_start_even_and_stay_ordered(bases: dict[str, Path]) -> None:
    network, _ = made(bases["encoder"], reward_spec("encoder", "gate"))
    _, thresholds, _ = network.link()
    below = torch.sigmoid(thresholds)
    assert torch.allclose(below, torch.tensor([[0.2, 0.4, 0.6, 0.8]]).expand(3, 4), atol=1e-5)
    with torch.no_grad():
        network.link.gaps -= 1000.0
    assert (network.link()[1].diff(dim=1) > 0).all()


def test_dropout_is_off_in_training(bases: dict[str, Path]) -> None:
    network, encoder = made(bases["encoder"], reward_spec("encoder"))
    batch = token_batch(encoder(CONVERSATIONS), encoder.padding)
    assert torch.equal(network.train()(batch).scores, network(batch).scores)


def test_layers_positions_and_kinds_are_checked(bases: dict[str, Path]) -> None:
    network, _ = made(bases["encoder"], reward_spec("encoder"), num_layers=1)
    assert len(network.backbones[0].encoder.layer) == 1
    with pytest.raises(UserError, match="num_layers = 3: the model has only 2"):
        made(bases["encoder"], reward_spec("encoder"), num_layers=3)
    with pytest.raises(UserError, match=r"max_tokens = 513.*at most 512"):
        made(bases["encoder"], reward_spec("encoder", max_tokens=513))
    assert {name: backbone_kind(folder) for name, folder in bases.items()} == {
        "decoder": "decoder",
        "encoder": "encoder",
    }


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="not t5"):
        backbone_kind(tmp_path)


def test_the_config_decides_the_make(bases: dict[str, Path]) -> None:
    config = RewardModelConfig.model_validate(
        {"name": "a", "data": {"path": "x", "rating_scale": [0, 1], "rating_step": 0.25}, "objectives": TWO}
    )
    spec = spec_for(config, bases["encoder"], {"pair", "rating"}, ties=True)
    assert spec.rating is not None and (spec.rating.levels, spec.ties, spec.thumbs) == (5, True, False)
    assert (spec.backbone, spec.max_tokens, spec.objectives) == ("encoder", 256, TWO)
    bare = spec_for(config, bases["decoder"], {"pair"}, ties=False)
    assert (bare.rating, bare.ties, bare.thumbs, bare.backbone) == (None, False, False, "decoder")
