"""A policy on disk in Hugging Face layout: loads in transformers, vLLM and `rlhf-ray serve` as it stands."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

_KEPT = (
    "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


def save_policy(target: Path, base: Path, tensors: Mapping[str, Tensor], card: str) -> None:
    """Writes `tensors` (whole, merged, Hugging Face names) with the configuration and tokenizer of `base`.

    `card` becomes README.md, the model card.
    """
    from huggingface_hub import save_torch_state_dict

    target.mkdir(parents=True)
    for name in _KEPT:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    save_torch_state_dict(dict(tensors), target, metadata={"format": "pt"})
    (target / "README.md").write_text(card)


def model_card(run: str, base: str, algorithm: str, step: int) -> str:
    """A model card with the metadata that the hub reads."""
    return f"""---
base_model: {base}
library_name: transformers
pipeline_tag: text-generation
tags: [rlhf, {algorithm}, rlhf-ray]
---

# {run}, step {step}

`{base}` aligned with {algorithm.upper()} by [rlhf-ray], run `{run}`, after {step} optimizer steps of the policy.
The run directory holds the configuration (`config.yaml`), the environment (`manifest.json`), all metrics and the
sampled rollouts. Adapters, if the run used any, are merged into these weights.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("policy")
model = AutoModelForCausalLM.from_pretrained("policy")
```
"""
