"""Makes an untrained reward model from a base model's folder."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from rlhf_ray.config import LoraConfig, RewardModelConfig
from rlhf_ray.errors import UserError
from rlhf_ray.models.causal_lm import add_lora
from rlhf_ray.models.engine import without_dropout
from rlhf_ray.models.reward.network import RewardNetwork
from rlhf_ray.models.reward.spec import RatingScale, RewardSpec
from rlhf_ray.models.reward.text import TextEncoder
from rlhf_ray.models.reward_model import load_tokenizer, own_padding
from rlhf_ray.types import Message

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def backbone_kind(folder: Path) -> Literal["decoder", "encoder"]:
    """Whether `folder` holds a causal language model or an encoder such as BERT; `UserError` for other models."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(folder)
    except ValueError as error:  # no model_type in it, or one that this version of transformers does not know
        raise UserError(f"{folder}: config.json names no known architecture ({str(error).splitlines()[0]})") from error
    if not config.is_encoder_decoder:
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            return "encoder"
        if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return "decoder"
    raise UserError(
        f"{folder}: a reward model's backbone is a causal language model or an encoder such as BERT, not "
        f"{config.model_type}"
    )


def spec_for(config: RewardModelConfig, folder: Path, kinds: Collection[str], ties: bool) -> RewardSpec:
    """The make of the reward model that `config` describes, on the base model in `folder`.

    `kinds` are those of the training data, and `ties` whether there are any among its pairs: the model has thresholds,
    thumb biases and a tie parameter only where it needs them, because a number that nothing trains would count as a
    fault of the gradient.
    """
    low, high = config.data.rating_scale
    return RewardSpec(
        backbone=backbone_kind(folder),
        architecture=config.architecture,
        objectives=config.objectives,
        combine=config.combine,
        ensemble=config.ensemble,
        max_tokens=config.data.max_tokens,
        ties=ties,
        rating=RatingScale(low=low, high=high, step=config.data.rating_step) if "rating" in kinds else None,
        thumbs="thumb" in kinds,
    )


def make_reward_network(
    folder: Path, spec: RewardSpec, num_layers: int | None = None, lora: LoraConfig | None = None, seed: int = 0
) -> RewardNetwork:
    """An untrained reward model on the first `num_layers` layers (None: all) of the base model in `folder`, float32,
    without dropout. The same arguments give the same weights.

    With `lora` the backbones train by their adapters; the heads always train whole. A decoder's embedding matrix is
    frozen: it is the largest of a small model, and most of its tokens never occur. Raises `UserError` for a model with
    fewer layers or positions than asked for.
    """
    _check_fit(folder, spec, num_layers)
    count = spec.backbones + spec.prompt_backbones
    made = [_trainable(load_backbone(folder, num_layers), spec, lora, seed + i) for i in range(count)]
    network = RewardNetwork(spec, made, seed)
    without_dropout(network)
    return network


def load_backbone(folder: Path, num_layers: int | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in `folder` without any head: the first `num_layers` layers, and no pooling layer of BERT's kind.

    Raises `UserError` if the folder lacks weights of it.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    config = AutoConfig.from_pretrained(folder)
    if num_layers is not None:
        _keep_layers(config, num_layers)
    shown = logging.get_verbosity()
    # Else a report of the weights left out, as if that were a mistake.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers is partly untyped
    try:
        model, found = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(shown)
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if missing:
        raise UserError(f"{folder}: {len(missing)} weights of the model are missing, first {missing[0]}")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # reads the first token only, and no gradient would ever reach it
    backbone: PreTrainedModel = model.eval()
    return backbone


def _trainable(backbone: PreTrainedModel, spec: RewardSpec, lora: LoraConfig | None, seed: int) -> nn.Module:
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return add_lora(backbone, lora)
    if spec.backbone == "decoder":
        backbone.get_input_embeddings().requires_grad_(False)
    return backbone


def _check_fit(folder: Path, spec: RewardSpec, num_layers: int | None) -> None:
    from transformers import AutoConfig

    config, tokenizer = AutoConfig.from_pretrained(folder), load_tokenizer(folder, spec.backbone)
    if num_layers is not None and num_layers > config.num_hidden_layers:
        raise UserError(f"num_layers = {num_layers}: the model has only {config.num_hidden_layers} layers")
    longest = min(getattr(config, "max_position_embeddings", None) or math.inf, tokenizer.model_max_length)
    if spec.max_tokens > longest:
        raise UserError(f"max_tokens = {spec.max_tokens}: the model in {folder} reads at most {longest} tokens")
    if spec.plain:
        padding = own_padding(tokenizer, folder)
        (row,) = TextEncoder(tokenizer, spec)([((Message("user", "a"),), "b")])
        if row.ids[-1] == padding:
            raise UserError(
                f"{folder}: the chat template ends with the padding token, so the end of a text is not seen"
            )


def _keep_layers(config: PretrainedConfig, num_layers: int) -> None:
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
