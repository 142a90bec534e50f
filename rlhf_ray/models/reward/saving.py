"""A reward model on disk: safetensors and JSON, in one of two layouts.

Plain (one linear head on a decoder): Hugging Face's sequence classifier of one label, which loads anywhere and as a
critic. All others: `backbone-0`, ... in Hugging Face's layout, `heads.safetensors` and `reward_model.json`. Both hold
the tokenizer and `reward_stats.json`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_ray.errors import UserError
from rlhf_ray.models.reward.build import backbone_kind, load_backbone
from rlhf_ray.models.reward.network import RewardNetwork
from rlhf_ray.models.reward.spec import HEADS_FILE, RewardSpec, backbone_folders, load_spec, save_spec
from rlhf_ray.models.reward_model import RewardStats, load_stats, load_tokenizer, save_stats, score_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BACKBONES = ("backbones.", "prompt_backbones.")


def save_reward_model(
    folder: Path,
    network: RewardNetwork,
    tokenizer: PreTrainedTokenizerBase,
    stats: RewardStats,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes `network` into `folder`, adapters merged and backbones in `dtype`; heads stay in float32, except in the
    plain layout, where the head is a weight like any other. Needs memory for one more backbone.

    Weights sharded by ZeRO-3 must have been gathered into `network` before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    save_stats(folder, stats)
    spec = network.spec
    if spec.plain:
        _save_plain(folder, network, tokenizer, dtype)
        return
    backbones = [*network.backbones, *network.prompt_backbones]
    for target, backbone in zip(backbone_folders(folder, spec), backbones, strict=True):
        _merged(backbone, dtype).save_pretrained(target)
    heads = {name: weight for name, weight in network.state_dict().items() if not name.startswith(_BACKBONES)}
    save_file({name: weight.detach().float().cpu().contiguous() for name, weight in heads.items()}, folder / HEADS_FILE)
    save_spec(folder, spec)  # last: its presence says that the rest is there


def load_reward_network(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[RewardNetwork, PreTrainedTokenizerBase, RewardStats | None]:
    """What `save_reward_model` wrote, backbones in `dtype`, not yet on a device; without statistics for a sequence
    classifier from elsewhere. Raises `UserError` if the folder holds something else or lacks a part."""
    spec = load_spec(folder)
    if spec is None:
        return _load_plain(folder, dtype)
    parts = backbone_folders(folder, spec)
    for part in parts:
        if not part.is_dir():
            raise UserError(f"{folder}: {part.name}, a part of the reward model, is missing; copy the folder again")
    network = RewardNetwork(spec, [load_backbone(part, dtype=dtype) for part in parts])
    _fill_heads(network, folder / HEADS_FILE)
    return network, load_tokenizer(folder, spec.backbone), load_stats(folder)


def _fill_heads(network: RewardNetwork, file: Path) -> None:
    try:
        heads = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not a complete safetensors file ({error}); copy the folder again") from error
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith(_BACKBONES)}
    wrong = sorted(
        name for name in wanted.keys() | heads.keys()
        if name not in wanted or name not in heads or wanted[name].shape != heads[name].shape
    )  # fmt: skip
    if wrong:
        raise UserError(f"{file}: does not fit reward_model.json beside it ({', '.join(wrong)}); copy the folder again")
    network.load_state_dict(heads, strict=False)


def _save_plain(folder: Path, network: RewardNetwork, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> None:
    from transformers import AutoModelForSequenceClassification

    backbone = _merged(network.backbones[0], dtype)
    config = copy.deepcopy(backbone.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    with torch.device("meta"):  # its own backbone is not wanted
        classifier: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]  # partly untyped
    setattr(classifier, classifier.base_model_prefix, backbone)
    head: Tensor = network.heads.weight[0] * network.weights[0]
    classifier.score = nn.Linear(head.shape[1], 1, bias=False)
    classifier.score.weight = nn.Parameter(head.detach().to(dtype))
    classifier.save_pretrained(folder)


def _load_plain(folder: Path, dtype: torch.dtype) -> tuple[RewardNetwork, PreTrainedTokenizerBase, RewardStats | None]:
    from transformers import AutoModelForSequenceClassification

    stats, tokenizer = load_stats(folder), load_tokenizer(folder)
    model, found = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    head = score_head(model, folder)
    if "score.weight" in found["missing_keys"]:
        raise UserError(f"{folder}: a language model without a trained score head; train a reward model from it")
    longest = stats.max_tokens if stats else int(model.config.max_position_embeddings)
    spec = RewardSpec(backbone=backbone_kind(folder), max_tokens=longest)
    network = RewardNetwork(spec, [model.base_model.eval()])
    with torch.no_grad():
        network.heads.weight.copy_(head.float()[None])
    return network, tokenizer, stats


def _merged(backbone: nn.Module, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of `backbone` with its adapters merged; itself left as it is, ready to train on."""
    copied = copy.deepcopy(backbone).cpu()
    merge = getattr(copied, "merge_and_unload", None)
    merged: nn.Module = merge() if callable(merge) else copied
    return cast("PreTrainedModel", merged.to(dtype))
