"""A tokenizer of one character a token, folders that look like models around it, and a run that uses them."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config import RunConfig

CONTROL = ("<|start|>", "<|end|>", "<|pad|>")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
OVERHEAD = len(["<|start|>", *"user\n", "<|end|>", "<|start|>", *"assistant\n"])
"""Tokens that the template puts around a single user turn."""


def tiny_tokenizer(extra: str = "") -> PreTrainedTokenizerFast:
    """Each printable character (and those of `extra`) is a token; the text is never normalized."""
    vocab = {character: i for i, character in enumerate(string.printable + extra)}
    backend = Tokenizer(models.WordLevel({**vocab, "<|unk|>": len(vocab)}, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|unk|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|start|>"],
        chat_template=TEMPLATE,
    )


def model_folder(folder: Path, extra: str = "", **config: object) -> Path:
    """A folder that looks like a language model of 20 weights, enough for every check before loading."""
    tiny_tokenizer(extra).save_pretrained(folder)
    settings = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"weight": np.zeros((4, 5), dtype=np.float32)}, folder / "model.safetensors")
    return folder


def reward_folder(folder: Path, extra: str = "") -> Path:
    """The same as a reward model."""
    architecture = ["LlamaForSequenceClassification"]
    made = model_folder(folder, extra, architectures=architecture, id2label={"0": "LABEL_0"})
    (made / "reward_stats.json").write_text('{"mean": 0.0, "std": 1.0, "answers": 8, "max_tokens": 4096}')
    return made


def run_config(tmp_path: Path, **changes: object) -> RunConfig:
    """A run that passes, in `tmp_path`, with whole sections replaced by `changes`."""
    if not (tmp_path / "policy").exists():
        model_folder(tmp_path / "policy")
        reward_folder(tmp_path / "reward")
        rows = "".join(json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(20))
        (tmp_path / "prompts.jsonl").write_text(rows)
    sections: dict[str, object] = {
        "name": "test",
        "model": {"path": str(tmp_path / "policy")},
        "prompts": {"path": str(tmp_path / "prompts.jsonl")},
        "reward": {"sources": [{"type": "model", "path": str(tmp_path / "reward")}]},
        "train": {"prompts_per_step": 16, "eval_prompts": 4},
    }
    return RunConfig.model_validate({**sections, **changes})
