"""What of a working directory Ray would upload, and whether its Jobs service takes that much."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from rlhf_ray.errors import UserError

MIB = 2**20
_SHOWN = 3


def check_upload(folder: Path) -> None:
    """`UserError` if `folder` is no folder, or holds more than an upload may before compression.

    The limit is the dashboard's on a request, which is below the one on a package that Ray's documentation names.
    """
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    if not folder.is_dir():
        raise UserError(f"--working-dir: {folder} is no folder")
    sizes = upload_sizes(folder)
    total = sum(sizes.values())
    if total >= DASHBOARD_CLIENT_MAX_SIZE:
        biggest = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in sizes.most_common(_SHOWN) if size >= MIB)
        raise UserError(
            f"--working-dir: {folder} holds {total / MIB:.0f} MiB, and Ray's Jobs service takes "
            f"{DASHBOARD_CLIENT_MAX_SIZE / MIB:.0f} MiB. The biggest: {biggest}. List what the job does not need in "
            f"{folder / '.rayignore'} or .gitignore, put data and models on storage that all nodes share, or give "
            "another --working-dir"
        )


def upload_sizes(folder: Path) -> Counter[str]:
    """Bytes that Ray would upload of each file and folder right below `folder`, by its own rules: .gitignore and
    .rayignore of every level, and its default excludes."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    sizes: Counter[str] = Counter()

    def count(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size

    packaging._dir_travel(
        folder,
        [packaging._get_excludes(folder, get_runtime_env_default_excludes())],
        count,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
    )
    return sizes
