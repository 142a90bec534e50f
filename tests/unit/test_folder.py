"""Model folders: what must be there, and what is said if it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_folders import model_folder, reward_folder

from rlhf_ray.errors import UserError
from rlhf_ray.models.folder import (
    check_backbone,
    check_causal_lm,
    check_critic_init,
    check_reward_model,
    count_parameters,
    max_positions,
    resolve_model,
    same_tokenizer,
)

Damage = Callable[[Path], object]


def test_whole_folders_pass(tmp_path: Path) -> None:
    policy, reward = model_folder(tmp_path / "policy"), reward_folder(tmp_path / "reward")
    check_causal_lm(policy)
    check_reward_model(reward)
    check_critic_init(reward)
    assert (max_positions(policy), count_parameters(policy)) == (512, 20)
    assert resolve_model(str(policy)) == policy


def add_auto_map(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def lose_a_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (add_auto_map, "auto_map.*never run"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (pickle_instead, "non-safetensors checkpoint .pytorch_model.bin.*convert"),
        (lose_a_shard, "1 weight files are missing, first model-2.safetensors"),
        (cut_weights, "not a complete safetensors file"),
    ],
)
def test_each_missing_part_is_named(tmp_path: Path, damage: Damage, message: str) -> None:
    folder = model_folder(tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_causal_lm(folder)


def test_the_two_kinds_are_not_taken_for_each_other(tmp_path: Path) -> None:
    policy, reward = model_folder(tmp_path / "policy"), reward_folder(tmp_path / "reward")
    with pytest.raises(UserError, match="not a language model"):
        check_causal_lm(reward)
    with pytest.raises(UserError, match="not a sequence-classification model"):
        check_reward_model(policy)
    two = model_folder(tmp_path / "two", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UserError, match="has 2 labels"):
        check_reward_model(two)
    with pytest.raises(UserError, match="holds a classifier"):
        check_backbone(reward)


def test_an_encoder_needs_no_chat_template(tmp_path: Path) -> None:
    encoder = model_folder(tmp_path / "encoder", architectures=["BertModel"], model_type="bert")
    decoder = model_folder(tmp_path / "decoder", model_type="llama")
    check_backbone(decoder)
    for folder in (encoder, decoder):
        (folder / "chat_template.jinja").unlink()
    check_backbone(encoder)
    with pytest.raises(UserError, match="decoder: has no chat template"):
        check_backbone(decoder)
    other = model_folder(tmp_path / "other", architectures=["T5Model"], model_type="t5")
    with pytest.raises(UserError, match="not t5"):
        check_backbone(other)
    with pytest.raises(UserError, match="names no known architecture"):
        check_backbone(model_folder(tmp_path / "unknown"))


def test_tokenizers_are_compared_by_their_ids(tmp_path: Path) -> None:
    a, b, other = (model_folder(tmp_path / name, extra) for name, extra in (("a", ""), ("b", ""), ("c", "é")))
    settings = json.loads((b / "tokenizer.json").read_text())
    (b / "tokenizer.json").write_text(json.dumps({**settings, "padding": None, "truncation": None}, indent=1))
    assert same_tokenizer(a, b)
    assert not same_tokenizer(a, other)
    settings["added_tokens"][0]["content"] = "<|other|>"
    (b / "tokenizer.json").write_text(json.dumps(settings))
    assert not same_tokenizer(a, b)


def test_unknown_models_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model folder .*/none does not exist"):
        resolve_model(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"model nobody/nothing-at-all .*not in the local cache"):
        resolve_model("nobody/nothing-at-all", download=False)
