"""Learners on disk: the policy in Hugging Face layout, which loads elsewhere as it stands, and what a run resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_ray.models.engine import Engine

_KEPT = (
    "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


def save_policy(target: Path, base: Path, tensors: Mapping[str, Tensor], card: str) -> None:
    """Writes `tensors` (whole, merged, Hugging Face names) with the configuration and tokenizer of `base`.

    `card` becomes README.md, the model card. What a rank left there that died meanwhile is replaced.
    """
    from huggingface_hub import save_torch_state_dict

    target.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    save_torch_state_dict(dict(tensors), target, metadata={"format": "pt"})
    (target / "README.md").write_text(card)


def copied_state(engine: Engine) -> Callable[[Path], None]:
    """What a learner resumes from, as it is now: trainable weights and Adam's moments, whole. All ranks call it; rank
    0's result writes them into a folder, as safetensors, and those of the others write nothing."""
    weights, moments = engine.trainable_state()
    steps, writes = engine.steps, torch.distributed.get_rank() == 0

    def write(folder: Path) -> None:
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "trainable.safetensors")
        if moments:
            save_file(moments, folder / "moments.safetensors")
        (folder / "optimizer.json").write_text(json.dumps({"steps": steps}))

    return write


def load_state(engine: Engine, folder: Path) -> None:
    """Puts back what `copied_state` wrote, on any number of ranks and at any ZeRO stage."""
    steps = json.loads((folder / "optimizer.json").read_text())["steps"]
    moments = load_file(folder / "moments.safetensors") if steps else {}
    engine.load_trainable_state(load_file(folder / "trainable.safetensors"), moments, steps)


def model_card(run: str, base: str, algorithm: str, step: int) -> str:
    """A model card with the metadata that the hub reads."""
    return f"""---
base_model: {base}
library_name: transformers
pipeline_tag: text-generation
tags: [rlhf, {algorithm}, rlhf-ray]
---

# {run}, step {step}

`{base}` aligned with {algorithm.upper()} by [rlhf-ray], run `{run}`, after {step} training steps.
The run directory holds the configuration (`config.yaml`), the environment (`manifest.json`), all metrics and the
sampled rollouts. Adapters, if the run used any, are merged into these weights.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("policy")
model = AutoModelForCausalLM.from_pretrained("policy")
```
"""
