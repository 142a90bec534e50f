"""Everything that can be known to be wrong before an actor starts. No Ray in here."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rlhf_ray.config import AnyConfig, AnyOfflineConfig, CriticConfig, RewardModelConfig, RunConfig
from rlhf_ray.data.feedback import Feedback, open_feedback
from rlhf_ray.data.files import is_hub_id
from rlhf_ray.data.prompts import load_prompts, read_rows
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import OVERALL
from rlhf_ray.footprint import estimated_gib
from rlhf_ray.machine import memory_gib
from rlhf_ray.machine_checks import Finding, cluster, open_files, own_ports, shared_memory, versions
from rlhf_ray.models.folder import (
    check_backbone,
    check_causal_lm,
    check_critic_init,
    check_reward_model,
    is_local,
    max_positions,
    resolve_model,
    same_tokenizer,
)
from rlhf_ray.models.lean import import_lean
from rlhf_ray.resources import checkpoint_gib, feasible
from rlhf_ray.rewards.base import FunctionRewardConfig, ModelRewardConfig
from rlhf_ray.rewards.isolated import FunctionFailed, IsolatedFunction
from rlhf_ray.rundir.commit import newest_first

__all__ = ["feasible", "preflight"]


Check = Callable[[], list[str]]


def preflight(config: AnyConfig, run_dir: Path, resume: bool, *, download: bool = True) -> list[str]:
    """Notes worth printing; raises `UserError` for the first thing that would stop the run.

    With `download` False (a dry run) models and data that only the hub has are a note instead of a download.
    """
    notes = [note for _, check in checks(config, run_dir, resume, download) for note in check()]
    elsewhere = config.placement.address or os.environ.get("RAY_ADDRESS")
    doubts = [*versions(), *([] if elsewhere else [shared_memory()])]  # less of it only makes a run slow
    return [
        *(finding.line for finding in doubts if not finding.ok),
        *notes,
        *([memory_finding(config).line] if isinstance(config, RunConfig) else []),
    ]


def checks(config: AnyConfig, run_dir: Path, resume: bool, download: bool) -> Iterator[tuple[str, Check]]:
    """What is looked at, in turn, and how: a check gives notes, or raises `UserError`. Later ones use the models that
    earlier ones have found."""
    yield "run directory", partial(_check_run_dir, run_dir, resume)
    yield "machine", partial(_check_machine, config.placement.address)
    if isinstance(config, RunConfig):
        yield from _online_checks(config, run_dir, download)
    else:
        yield from _offline_checks(config, run_dir, download)


def _offline_checks(config: AnyOfflineConfig, run_dir: Path, download: bool) -> Iterator[tuple[str, Check]]:
    yield "model", partial(_check_offline_model, config, download)
    yield "disk", partial(_check_disk, config, run_dir)
    yield "data", partial(_check_feedback, config, download)


def _check_offline_model(config: AnyOfflineConfig, download: bool) -> list[str]:
    notes: list[str] = []
    check = check_backbone if isinstance(config, RewardModelConfig) else check_causal_lm
    folder = _folder(config.model.path, check, download, notes)
    longest = max_positions(folder) if folder else None
    if longest is not None and config.data.max_tokens > longest:
        raise UserError(
            f"data.max_tokens = {config.data.max_tokens}, but {config.model.path} was built for {longest} positions; "
            "lower it"
        )
    return notes


def _check_feedback(config: AnyOfflineConfig, download: bool) -> list[str]:
    on_hub = [path for path in (config.data.path, config.data.heldout_path) if path and is_hub_id(path)]
    if on_hub and not download:
        return [f"feedback of {on_hub[0]} is on the hub: not checked, loaded when the run starts"]
    feedback = open_feedback(config.data, config.seed)
    if isinstance(config, RewardModelConfig):
        _check_objectives(config, feedback)
    train = config.train
    steps = train.max_steps or math.ceil(train.epochs * feedback.num_train / train.batch_size)
    return [
        f"{feedback.num_train} items to train on, {feedback.num_heldout} held out",
        *feedback.notes,
        f"about {steps} steps of {train.batch_size} rows over {train.num_workers} ranks",
    ]


def _online_checks(config: RunConfig, run_dir: Path, download: bool) -> Iterator[tuple[str, Check]]:
    folders: dict[str, Path] = {}
    models = [source for source in config.reward.sources if isinstance(source, ModelRewardConfig)]
    yield "steps", partial(_arithmetic, config)
    for source in config.reward.sources:
        if isinstance(source, FunctionRewardConfig):
            yield f"reward {source.path}", partial(check_function, source)
    yield "policy", partial(_check_model, config, config.model.path, check_causal_lm, download, folders)
    for model in models:
        yield f"reward {model.path}", partial(_check_reward, config, model.path, download, folders)
    rewards = [model.path for model in models]
    yield "critic", lambda: _check_critic(config, folders.get(config.model.path), [*map(folders.get, rewards)])
    yield "disk", partial(_check_disk, config, run_dir)
    yield "prompts", lambda: _check_prompts(config, folders.get(config.model.path), download)


def _arithmetic(config: RunConfig) -> list[str]:
    notes = [config.arithmetic()]
    if not config.algorithm.needs_critic and config.critic != CriticConfig():
        notes.append(f"critic is ignored: algorithm.type = {config.algorithm.type} has none")
    return notes


def _check_model(
    config: RunConfig, path: str, check: Callable[[Path], None], download: bool, folders: dict[str, Path]
) -> list[str]:
    notes: list[str] = []
    if folder := _folder(path, check, download, notes):
        folders[path] = folder
        _check_positions(config, path, folder)
    return notes


def _check_reward(config: RunConfig, path: str, download: bool, folders: dict[str, Path]) -> list[str]:
    notes = _check_model(config, path, check_reward_model, download, folders)
    return notes + (_scale_notes(config, folders[path]) if path in folders else [])


def memory_finding(config: RunConfig) -> Finding:
    """What the roles will take at their peak, and, if this machine has to have it all, whether it does."""
    by_role = estimated_gib(config)
    total = sum(by_role.values())
    parts = ", ".join(f"{role} {size:.1f}" for role, size in by_role.items())
    elsewhere = config.placement.address or os.environ.get("RAY_ADDRESS")
    fix = (
        f"more than the {memory_gib():.1f} of this machine: lower microbatch_tokens or rollout.kv_cache_gib, train "
        "adapters (lora), or share out the state (num_workers, deepspeed.zero_stage)"
    )
    fits = elsewhere or total <= memory_gib()
    return Finding("memory at the peak", f"about {total:.1f} GiB ({parts})", "" if fits else fix)


def _check_objectives(config: RewardModelConfig, feedback: Feedback) -> None:
    """Evidence about an objective that the model does not have could not train anything; without one it trains the
    total."""
    used = {objective for by_objective in feedback.counts.values() for objective in by_objective}
    unknown = sorted(used - {*config.objectives, OVERALL})
    if unknown:
        raise UserError(
            f"data.path: {config.data.path} has evidence about {', '.join(unknown)}, but objectives = "
            f"{list(config.objectives)}; add what the model should learn, or leave such rows out"
        )


def _check_run_dir(run_dir: Path, resume: bool) -> list[str]:
    if resume:
        if not (run_dir / "config.yaml").is_file():
            raise UserError(f"--resume: {run_dir} holds no run (no config.yaml); start it without --resume")
    elif run_dir.exists():
        raise UserError(f"run directory {run_dir} exists already; continue it with --resume or choose a new --run-dir")
    parent = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"run directory {run_dir}: {parent} is not writable; choose another --run-dir")
    return []


def _check_machine(address: str | None) -> list[str]:
    """A Ray cluster that is named must answer at its port; `auto` and none are found by Ray itself. A run that brings
    its own cluster needs this machine's ports and files."""
    source, address = ("placement.address", address) if address else ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS"))
    own = [] if address else [open_files(), own_ports()]
    for finding in (*cluster(address, source), *own):
        if not finding.ok:
            raise UserError(finding.line)
    return []


def _folder(path: str, check: Callable[[Path], None], download: bool, notes: list[str]) -> Path | None:
    """The checked folder of a model, or None with a note if a dry run finds it nowhere on this machine."""
    try:
        folder = resolve_model(path, download)
    except UserError:
        if download or is_local(path):
            raise
        notes.append(f"model {path} is not on this machine: it was not checked, and is downloaded when the run starts")
        return None
    check(folder)
    return folder


def _check_critic(config: RunConfig, policy: Path | None, rewards: Sequence[Path | None]) -> list[str]:
    """The critic reads the policy's token ids, so a critic made from the reward model needs the policy's tokenizer."""
    if not config.algorithm.needs_critic or config.critic.init != "reward":
        return []
    if not rewards:
        raise UserError("critic.init = reward needs a reward source of type model; set critic.init=policy")
    if rewards[0]:
        check_critic_init(rewards[0])
    if policy and rewards[0] and not same_tokenizer(policy, rewards[0]):
        raise UserError(
            f"critic.init = reward: the tokenizers of {config.model.path} and of the reward model {rewards[0]} differ, "
            "but critic and policy share token ids; set critic.init=policy or use a reward model of the same family"
        )
    return []


def _check_positions(config: RunConfig, path: str, folder: Path) -> None:
    longest, allowed = config.prompts.max_prompt_tokens + config.rollout.max_new_tokens, max_positions(folder)
    if allowed is not None and longest > allowed:
        raise UserError(
            f"prompts.max_prompt_tokens + rollout.max_new_tokens = {longest} tokens, but {path} was built for "
            f"{allowed} (max_position_embeddings); lower one of them"
        )


def _scale_notes(config: RunConfig, folder: Path) -> list[str]:
    """What a reward model's statistics say about how it will be used here."""
    from rlhf_ray.models.reward_model import load_stats

    stats, longest = load_stats(folder), config.prompts.max_prompt_tokens + config.rollout.max_new_tokens
    if stats is None:
        return [f"{folder} has no reward_stats.json: its scores are used raw, so check kl_coef and value_clip_range"]
    if longest > stats.max_tokens:
        return [f"{folder} was trained on at most {stats.max_tokens} tokens: longer conversations are cut on the left"]
    return []


def _check_disk(config: AnyConfig, run_dir: Path) -> list[str]:
    parent = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists())
    free, one = shutil.disk_usage(parent).free / 2**30, checkpoint_gib(config)
    there = len(newest_first(run_dir / "checkpoints"))  # of a run that is resumed; one is written before one goes
    needed = one * (config.train.keep_checkpoints + 2 - min(there, config.train.keep_checkpoints + 1))
    if needed > free:
        raise UserError(
            f"{run_dir}: {free:.1f} GiB of disk are free, but train.keep_checkpoints = {config.train.keep_checkpoints} "
            f"newest ones, the best one and one being written need about {needed:.1f} GiB ({one:.1f} each); free some "
            "or use another --run-dir"
        )
    return []


def _check_prompts(config: RunConfig, policy: Path | None, download: bool) -> list[str]:
    on_hub = [path for path in (config.prompts.path, config.prompts.heldout_path) if path and is_hub_id(path)]
    if on_hub and not download:
        return [f"prompts of {on_hub[0]} are on the hub: not checked, loaded when the run starts"]
    if policy is None:  # no tokenizer here: the rows can be read, their length cannot be known
        return [f"{len(read_rows(config.prompts))} prompts read; their length in tokens was not checked"]
    import_lean()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    train, heldout, more = load_prompts(config.prompts, tokenizer, config.train.eval_prompts)
    notes = [f"{len(train)} training prompts, {len(heldout)} held out", *more]
    if len(train) < config.train.prompts_per_step:
        notes.append(f"a step takes {config.train.prompts_per_step} prompts, more than there are: some repeat in it")
    return notes


def check_function(source: FunctionRewardConfig) -> list[str]:
    """Raises `UserError` unless the function can be loaded, in a process of its own, and takes (prompt, response,
    reference)."""
    try:
        IsolatedFunction(source.path, source.timeout_s, source.memory_gib).close()
    except FunctionFailed as error:
        raise UserError(f"{error}") from error
    return []
