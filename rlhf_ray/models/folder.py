"""Model folders: from `model.path` to a local folder, and what must lie in it before anything starts."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from rlhf_ray.errors import UserError
from rlhf_ray.models.reward.spec import HEADS_FILE, SPEC_FILE, RewardSpec, backbone_folders, load_spec

EMBEDDED = "smollm2-135m"
ENCODER = "minilm-l6"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def is_local(path: str) -> bool:
    """True for an embedded model, a folder that exists, and whatever is written like a file path."""
    return path in (EMBEDDED, ENCODER) or Path(path).expanduser().exists() or not _HUB_ID.fullmatch(path)


def resolve_model(path: str, download: bool = True) -> Path:
    """The absolute local folder of a model: an embedded one, a local folder, or a hub id.

    With `download` False a hub model is looked up in the local cache only. Raises `UserError` if there is none.
    """
    if path == EMBEDDED:
        from rlhf_ray.models.smollm2 import smollm2_folder

        return smollm2_folder()
    if path == ENCODER:
        from rlhf_ray.models.minilm import minilm_folder

        return minilm_folder()
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if is_local(path):
        raise UserError(
            f"model folder {path} does not exist; give a folder, a hub id (owner/name), {EMBEDDED} or {ENCODER}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(path, allow_patterns=_DOWNLOADED, local_files_only=not download)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if download else "it is not in the local cache"
        raise UserError(
            f"model {path} is neither a local folder nor available from the hub ({reason}); check the name, log "
            "in with `hf auth login` if it is gated, or download it on a machine with a network and give its folder"
        ) from error
    return Path(found)


def check_causal_lm(folder: Path) -> None:
    """Raises `UserError` unless `folder` holds a language model with safetensors, tokenizer and chat template."""
    config = _check_folder(folder)
    if _is_classifier(config):
        raise UserError(f"model folder {folder}: holds a classifier ({_architecture(config)}), not a language model")


def check_backbone(folder: Path) -> None:
    """Raises `UserError` unless `folder` holds what a reward model can be trained from: a language model as above, or
    an encoder such as BERT, which needs no chat template."""
    from rlhf_ray.models.reward.build import backbone_kind

    config = _check_folder(folder, chat_template=False)
    if _is_classifier(config):
        raise UserError(f"model folder {folder}: holds a classifier ({_architecture(config)}), not a base model")
    if backbone_kind(folder) == "decoder":
        _check_chat_template(folder)


def check_reward_model(folder: Path) -> None:
    """Raises `UserError` unless `folder` holds a reward model: a sequence classifier of one label, complete as above,
    or the parts that `reward_model.json` speaks of."""
    spec = load_spec(folder)
    if spec is not None:
        _check_parts(folder, spec)
        return
    config = _check_folder(folder)
    if not _is_classifier(config):
        raise UserError(
            f"reward model {folder}: holds {_architecture(config)}, not a sequence-classification model; train one "
            "with `kind: reward`"
        )
    names = config.get("id2label")
    labels = config.get("num_labels", len(names) if isinstance(names, Mapping) else 2)  # 2: the library's default
    if labels != 1:
        raise UserError(f"reward model {folder}: has {labels} labels; a reward model has one")


def check_critic_init(folder: Path) -> None:
    """Raises `UserError` unless a critic can start from the reward model in `folder`, which `check_reward_model` has
    seen: it takes over one decoder and one linear head."""
    spec = load_spec(folder)
    if spec is not None:
        raise UserError(
            f"critic.init = reward: the reward model {folder} ({spec.backbone}, {spec.architecture.type}, "
            f"{len(spec.objectives)} objectives, {spec.members} members) is not one linear head on a decoder, which is "
            "all that a critic can take over; set critic.init=policy"
        )


def same_tokenizer(folder_a: Path, folder_b: Path) -> bool:
    """True if both tokenizers map the same strings to the same ids (vocabulary and added tokens)."""
    return _tokenizer_hash(folder_a) == _tokenizer_hash(folder_b)


def model_config(folder: Path) -> dict[str, object]:
    """The `config.json` of `folder`; `UserError` if it is missing, not JSON, or asks for remote code."""
    content = _read_json(folder / "config.json", f"model folder {folder}")
    _refuse_code(folder / "config.json", content)
    return content


def max_positions(folder: Path) -> int | None:
    """The longest sequence in tokens that the model was built for, or None if its config does not say, or if it is a
    reward model of several parts, which cuts what is longer."""
    if (folder / SPEC_FILE).is_file():
        return None
    value = model_config(folder).get("max_position_embeddings")
    return value if isinstance(value, int) else None


def count_parameters(folder: Path) -> int:
    """The number of weights in the safetensors files, read from their headers."""
    from safetensors import SafetensorError, safe_open

    total = 0
    spec = load_spec(folder)
    parts = backbone_folders(folder, spec) if spec else []
    for file in (file for part in (folder, *parts) for file in _weight_files(part)):
        try:
            with safe_open(file, framework="numpy") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); fetch or write that model again") from error
    return total


def _check_folder(folder: Path, chat_template: bool = True) -> dict[str, object]:
    if (folder / "adapter_config.json").is_file():  # beside a whole model, transformers would apply it and vLLM not
        raise UserError(f"model folder {folder}: has a LoRA adapter; merge it into its base model first (peft)")
    config = model_config(folder)
    _check_code(folder)
    _check_weights(folder)
    _check_tokenizer(folder)
    if chat_template:
        _check_chat_template(folder)
    return config


def _check_parts(folder: Path, spec: RewardSpec) -> None:
    _check_code(folder)
    for part in backbone_folders(folder, spec):
        model_config(part)
        _check_code(part)
        _check_weights(part)
    if not (folder / HEADS_FILE).is_file():
        raise UserError(f"reward model {folder}: has no {HEADS_FILE}; copy the folder again")
    _check_weights(folder)
    _check_tokenizer(folder)
    if spec.backbone == "decoder":
        _check_chat_template(folder)


def _check_code(folder: Path) -> None:
    """The tokenizer and the processors have configs of their own, for which transformers would ask at the terminal."""
    for file in sorted(folder.glob("*config.json")):
        _refuse_code(file, _json(file, f"model folder {file.parent}"))  # a list too: sentence-transformers has one


def _refuse_code(file: Path, content: object) -> None:
    """`UserError` if a config names Python code of the model's own."""
    if _names_code(content):
        raise UserError(
            f"model folder {file.parent}: {file.name} has auto_map, that is, Python code of its own; such code is "
            "never run. Use a model whose architecture is part of transformers"
        )


def _names_code(content: object) -> bool:
    """At any depth: a part such as `vision_config` is a config too, whose code has been run where only the top was
    looked at (CVE-2026-4944 in vLLM)."""
    if isinstance(content, Mapping):
        return "auto_map" in content or any(map(_names_code, content.values()))
    return isinstance(content, list) and any(map(_names_code, content))


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(
            f"model folder {folder}: has no tokenizer ({', '.join(_TOKENIZER_FILES)}); save it there with "
            "tokenizer.save_pretrained"
        )


def _check_chat_template(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    in_settings = settings.is_file() and _read_json(settings, f"model folder {folder}").get("chat_template")
    if not (folder / "chat_template.jinja").is_file() and not in_settings:
        raise UserError(
            f"model folder {folder}: has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); take an instruction-tuned model, or add its template"
        )


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    files = _weight_files(folder)
    if not files:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        if pickled:
            raise UserError(
                f"model folder {folder}: a non-safetensors checkpoint ({pickled[0]}), which can run code when loaded; "
                "convert it with model.save_pretrained of a recent transformers in a sandbox"
            )
        raise UserError(f"model folder {folder}: has no weights (*.safetensors)")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index, f"model folder {folder}").get("weight_map", {})
        named = set(map(str, shards.values())) if isinstance(shards, Mapping) else set()
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise UserError(f"model folder {folder}: {len(missing)} weight files are missing, first {missing[0]}")
    for file in files:
        try:
            with safe_open(file, framework="numpy"):  # reads the header and compares the size
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a complete safetensors file ({error}); copy it again") from error


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_"))


def _read_json(file: Path, owner: str) -> dict[str, object]:
    content = _json(file, owner)
    if not isinstance(content, dict):
        raise UserError(f"{owner}: {file.name} is not a JSON object")
    return content


def _json(file: Path, owner: str) -> object:
    try:
        content: object = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{owner}: has no {file.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{owner}: {file.name} is not JSON ({error})") from None
    return content


def _architecture(config: Mapping[str, object]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "an unnamed architecture"


def _is_classifier(config: Mapping[str, object]) -> bool:
    return "SequenceClassification" in _architecture(config)


def _tokenizer_hash(folder: Path) -> str:
    tokenizer = _read_json(folder / "tokenizer.json", f"model folder {folder}")
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    special = sorted((t["id"], t["content"]) for t in added) if isinstance(added, list) else []
    return hashlib.sha256(json.dumps([vocabulary, special], sort_keys=True).encode()).hexdigest()
