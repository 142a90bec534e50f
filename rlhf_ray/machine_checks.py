"""What a run needs of a machine beside cores and memory; each lack with its cause and its fix. No torch, no Ray."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from rlhf_ray.machine import silent_cluster

_GIB = 2**30
_SHARED_GIB = 1.0
"""What an embedded cluster's object store takes."""
_OPEN_FILES = 4096
"""With fewer, Ray itself warns of connection errors."""
_ANSWER_S = 2.0
_ELSEWHERE = ("192.0.2.1", 9)
"""An address of nobody (RFC 5737), to which nothing is sent: it tells by which of its addresses others know us."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and how to fix it (empty if all is well)."""

    name: str
    found: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        """True if there is nothing to fix."""
        return not self.fix

    @property
    def line(self) -> str:
        """All of it, for a note or an error."""
        return f"{self.name}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def shared_memory() -> Finding:
    """Ray keeps its objects there; where there is too little, on the disk."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "none on this system")
    free = shutil.disk_usage(folder).free / _GIB
    fix = f"free or allow at least {_SHARED_GIB:g} GiB in {folder} (docker run --shm-size=2g), or Ray uses the disk"
    return Finding("shared memory", f"{free:.1f} GiB free", "" if free >= _SHARED_GIB else fix)


def open_files() -> Finding:
    """How many a run may have: Ray raises the soft limit, which is low by default, as far as the hard one allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "no limit")
    fix = f"let it be {_OPEN_FILES} at least (`ulimit -Hn` as root, limits.conf, docker run --ulimit nofile=65536)"
    return Finding("open files", f"at most {hard}", "" if hard >= _OPEN_FILES else fix)


def own_ports() -> Finding:
    """Whether this machine can listen, and be reached, at the address by which its actors know each other."""
    address = own_address()
    try:
        with socket.create_server((address, 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection((address, port), timeout=_ANSWER_S).close()
    except OSError as error:
        fix = "actors and ranks talk through ports of it: allow connections from this machine to itself"
        return Finding("own ports", f"{address} cannot be reached from here ({error})", fix)
    return Finding("own ports", f"open at {address}")


def own_address() -> str:
    """The address of this machine on its way to others; 127.0.0.1 if there is no such way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def cluster(address: str | None, source: str) -> Iterator[Finding]:
    """Whether the cluster that is named answers, and whether there is the token that it may ask for."""
    reason = silent_cluster(address)
    if reason:
        fix = f"start that cluster or unset {source}"
        yield Finding("ray cluster", f"{address} does not answer ({reason})", fix)
        return
    yield Finding("ray cluster", address or "none named (a run starts its own)")
    if address and os.environ.get("RAY_AUTH_MODE") == "token":
        there = _has_token()
        fix = "put the cluster's token into RAY_AUTH_TOKEN, or its file into RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        yield Finding("ray token", "there" if there else "RAY_AUTH_MODE=token, but there is none", "" if there else fix)


def _has_token() -> bool:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(path) if path else Path.home() / ".ray" / "auth_token"
    try:
        return bool(os.environ.get("RAY_AUTH_TOKEN") or file.read_text(encoding="utf-8").strip())
    except OSError:
        return False


def versions() -> Iterator[Finding]:
    """Of what is installed, against the pins of this package's own metadata: the set that is tested together."""
    if installed("rlhf-ray") is None:  # a bare checkout has no pins
        return
    for line in metadata.requires("rlhf-ray") or []:
        pin = Requirement(line)
        exact = [clause.version for clause in pin.specifier if clause.operator == "=="]
        found = installed(pin.name)
        if not exact or found is None:  # absent ones are reported by import, and one of the vllm builds always is
            continue
        tested = Version(found) in pin.specifier
        yield Finding(pin.name, found, "" if tested else f"tested with {exact[0]}: pip install {pin.name}=={exact[0]}")


def installed(name: str) -> str | None:
    """The version of a distribution; None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
