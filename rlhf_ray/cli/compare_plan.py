"""Which runs `rlhf-ray compare --recipe` makes: what all of them share, and what each algorithm has of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from rlhf_ray.algorithms.base import AlgorithmConfig
from rlhf_ray.config import AnyConfig, CriticConfig, RunConfig
from rlhf_ray.config.online import AlgorithmConfig as AnyAlgorithm
from rlhf_ray.config_file import explain, load_config
from rlhf_ray.errors import UserError
from rlhf_ray.preflight import preflight
from rlhf_ray.report.facts import flatten
from rlhf_ray.report.finished import is_finished
from rlhf_ray.resources import checkpoint_gib

_ALIASES = {"dpo": "online_dpo"}
_CLIPPING = ("clip_range", "clip_range_high", "dual_clip")
_NOT_SHARED = {
    "reinforce": _CLIPPING,
    "trpo": ("old_logprobs", *_CLIPPING),
    "gspo": _CLIPPING,
    "cispo": _CLIPPING,
}
"""Settings that have the name of the recipe's but another meaning: REINFORCE and TRPO have no clipping; GSPO clips the
ratio of a whole answer, CISPO a weight, each on a scale of its own."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The config of each run, algorithm by algorithm and seed by seed, and what is worth saying about them."""

    configs: list[RunConfig]
    notes: list[str]

    @property
    def folders(self) -> list[str]:
        """A name for each run's directory."""
        return [f"{config.algorithm.type}-seed{config.seed}" for config in self.configs]


def plan_runs(recipe: str, overrides: Sequence[str], algorithms: Sequence[str], seeds: int) -> RunPlan:
    """Every algorithm with every seed from the recipe's on; `UserError` for what cannot be compared.

    All runs have the recipe's settings, except that `samples_per_prompt` is raised to what the most demanding algorithm
    needs and `prompts_per_step` lowered, so that a step has the same number of rollouts.
    """
    base = load_config(recipe, overrides)
    if not isinstance(base, RunConfig):
        raise UserError(f"{recipe} is a recipe of kind {base.kind}; compare makes online runs (kind: online)")
    known = known_algorithms()
    names = [_ALIASES.get(name, name) for name in algorithms]
    for name in names:
        if name not in known:
            spelled = ", ".join([*known, *(f"{short} (that is {long})" for short, long in _ALIASES.items())])
            raise UserError(f"--algorithms: there is no {name or 'algorithm without a name'}; known: {spelled}")
    if len(set(names)) < len(names):
        raise UserError(f"--algorithms {','.join(algorithms)} names an algorithm twice")
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: at least 1")
    _check_base(base, recipe)
    prompts, samples = _sizes(base, [known[name] for name in names], recipe)
    notes = _size_notes(base, prompts, samples)
    configs = []
    for name in names:
        settings, note = carried_over(base.algorithm, known[name])
        notes += [note, *_critic_notes(base, known[name], name)]
        configs += [_config(base, settings, base.seed + i, prompts, samples) for i in range(seeds)]
    return RunPlan(configs, notes)


def known_algorithms() -> dict[str, type[AlgorithmConfig]]:
    """The config class of each `algorithm.type`."""
    classes: tuple[type[AlgorithmConfig], ...] = get_args(get_args(AnyAlgorithm)[0])
    return {str(cls.model_fields["type"].default): cls for cls in classes}


def carried_over(recipe: AlgorithmConfig, algorithm: type[AlgorithmConfig]) -> tuple[dict[str, object], str]:
    """The `algorithm` section of a run, and a sentence about it: the algorithm's own defaults, and of what the recipe
    sets otherwise than its own algorithm's default all that this algorithm has too and takes in the same sense."""
    name = str(algorithm.model_fields["type"].default)
    told = recipe.model_dump(mode="json", exclude={"type"}, exclude_defaults=True)
    if name == recipe.type:
        return {"type": name, **told}, f"{name}: as in the recipe"
    barred = _NOT_SHARED.get(name, ())
    kept = {key: value for key, value in told.items() if key in algorithm.model_fields and key not in barred}
    if kept.get("kl_placement", _default(algorithm, "kl_placement")) != getattr(recipe, "kl_placement", None):
        kept.pop("kl_estimator", None)  # an estimator is one of the reward or of the loss
    left = sorted(told.keys() - kept.keys())
    note = f"{name}: its own defaults" + "".join(f", {key} = {value}" for key, value in kept.items())
    return {"type": name, **kept}, note + (f"; not taken over from the recipe: {', '.join(left)}" if left else "")


def _default(algorithm: type[AlgorithmConfig], key: str) -> object:
    return algorithm.model_fields[key].default if key in algorithm.model_fields else None


def check_all(plan: RunPlan, folders: Sequence[Path]) -> tuple[list[tuple[RunConfig, Path]], list[str]]:
    """The runs that are not finished yet, and notes; `UserError` for the first thing that would stop one of them."""
    pairs = list(zip(plan.configs, folders, strict=True))
    for config, folder in pairs:
        _check_same(config, folder)
    wanted = [(config, folder) for config, folder in pairs if not is_finished(folder)]
    notes, checked = list(plan.notes), set[str]()
    for config, folder in wanted:
        if config.algorithm.type not in checked:  # of what is checked nothing depends on the seed
            checked.add(config.algorithm.type)
            notes += preflight(config, folder, folder.exists())
    _check_disk(wanted)
    return wanted, list(dict.fromkeys(notes))


def _check_same(config: RunConfig, folder: Path) -> None:
    """A `UserError` if something else is in `folder` than a run of `config`. Where it runs may differ."""
    if not folder.exists():
        return
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} exists and holds no run (no config.yaml): remove it, or choose another --out")
    mine, theirs = (_placeless(tree) for tree in (config, load_config(folder / "config.yaml")))
    changed = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
    if changed:
        what = "; ".join(f"{key} is {theirs.get(key)} there and {mine.get(key)} now" for key in changed)
        raise UserError(f"{folder} holds a run with other settings ({what}): remove it, or choose another --out")


def _check_disk(wanted: Sequence[tuple[RunConfig, Path]]) -> None:
    if not wanted:
        return
    place = wanted[0][1].absolute()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free / 2**30
    needed = sum(checkpoint_gib(config) * config.train.keep_checkpoints for config, _ in wanted)
    if needed > free:
        raise UserError(
            f"{place.parent}: {free:.1f} GiB of disk are free, but the checkpoints of {len(wanted)} runs need about "
            f"{needed:.1f} GiB; lower train.keep_checkpoints, free some, or choose another --out"
        )


def _placeless(config: AnyConfig) -> dict[str, str]:
    return dict(flatten(config.model_dump(mode="json", exclude={"placement"})))


def _check_base(base: RunConfig, recipe: str) -> None:
    if not base.train.eval_prompts:
        raise UserError(f"{recipe}: train.eval_prompts = 0, but runs are compared on held-out prompts; set some 48")
    if base.train.dynamic_sampling:
        raise UserError(
            f"{recipe}: train.dynamic_sampling samples as many rollouts as it needs, so the budgets would differ; set "
            "train.dynamic_sampling=null"
        )


def _sizes(base: RunConfig, algorithms: Sequence[type[AlgorithmConfig]], recipe: str) -> tuple[int, int]:
    """Prompts a step and samples a prompt."""
    samples = max(base.rollout.samples_per_prompt, *(algorithm.min_samples for algorithm in algorithms))
    prompts, rest = divmod(base.rollouts_per_step, samples)
    if rest or not prompts:
        raise UserError(
            f"{recipe}: {base.rollouts_per_step} rollouts a step cannot be {samples} samples a prompt, which these "
            "algorithms need; set train.prompts_per_step and rollout.samples_per_prompt"
        )
    return prompts, samples


def _size_notes(base: RunConfig, prompts: int, samples: int) -> list[str]:
    if samples == base.rollout.samples_per_prompt:
        return []
    return [
        f"samples_per_prompt is {samples} instead of {base.rollout.samples_per_prompt} in all runs, because some "
        f"algorithms compare answers to one prompt; prompts_per_step is {prompts} instead of "
        f"{base.train.prompts_per_step}, so that a step has {base.rollouts_per_step} rollouts as before"
    ]


def _critic_notes(base: RunConfig, algorithm: type[AlgorithmConfig], name: str) -> list[str]:
    if not algorithm.needs_critic or base.algorithm.needs_critic or base.critic != CriticConfig():
        return []
    default = CriticConfig()
    return [
        f"{name}: the recipe has no critic section, so its critic has the defaults (all weights, learning_rate = "
        f"{default.learning_rate:g}); a fair comparison sets critic.learning_rate and critic.lora"
    ]


def _config(base: RunConfig, algorithm: Mapping[str, object], seed: int, prompts: int, samples: int) -> RunConfig:
    name = f"{base.name}-{algorithm['type']}-seed{seed}"
    tree = base.model_dump(mode="json") | {"algorithm": algorithm, "seed": seed, "name": name}
    tree["train"]["prompts_per_step"] = prompts
    tree["rollout"]["samples_per_prompt"] = samples
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(explain(error, RunConfig))
        raise UserError(f"{algorithm['type']} with the settings of the recipe: {problems}") from None
