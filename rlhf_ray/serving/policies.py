"""From what a user names to a policy that can be served: its newest good checkpoint, checked, and its gate."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rlhf_ray.errors import GateError, UserError
from rlhf_ray.models.folder import check_causal_lm, resolve_model
from rlhf_ray.report.files import read_run
from rlhf_ray.rundir.commit import file_sha256, latest_commit
from rlhf_ray.serving.gate import judge
from rlhf_ray.serving.traffic import Policy

_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")
_KINDS = ("online", "sft", "preference")


def find_policy(source: str, force: bool) -> Policy:
    """The policy of a run directory, a model folder or an embedded model.

    `UserError` if it cannot be served, `GateError` if its run's gate did not pass and it is not forced.
    """
    path = Path(source).expanduser()
    if (path / "config.yaml").is_file():
        return _of_run(path, force)
    folder = resolve_model(source)
    check_causal_lm(folder)
    return Policy(_version(folder.name, folder), source, str(folder), "not a run: no gate")


def _of_run(path: Path, force: bool) -> Policy:
    try:
        run = read_run(path)
    except ValueError as error:
        raise UserError(f"{path}: a file of the run cannot be read ({error}). Repair it, or serve a folder") from error
    if run.kind not in _KINDS:
        raise UserError(f"{path} is a run of kind {run.kind}, which trains no policy; serve one of {', '.join(_KINDS)}")
    commit = latest_commit(path / "checkpoints")
    if commit is None:
        raise UserError(f"{path} has no checkpoint that verifies: nothing to serve yet")
    folder = commit.path / "policy"
    check_causal_lm(folder)
    verdict = judge(run)
    if not verdict.passed and not force:
        raise GateError(f"{path}: its gate did not pass: {verdict.words}. With --force it is served nevertheless")
    words = verdict.words if verdict.passed else f"served by force although: {verdict.words}"
    return Policy(_version(f"{path.resolve().name}-{commit.path.name}", folder), str(path), str(folder), words)


def _version(name: str, folder: Path) -> str:
    """Names the weights, whatever happens to the folder later."""
    hashes = [file_sha256(file) for file in sorted(folder.glob("*.safetensors"))]
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return f"{_UNSAFE.sub('_', name)[:48]}_{digest[:8]}"
