"""A port for a test's server or group."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A port of this machine that is free, and that no program is given by the kernel for a connection of its own.

    Such programs, Ray's among them, get ports from 32768 on (Linux, `ip_local_port_range`), and Ray's workers take from
    10002 to 19999: one that was free a moment ago is theirs by the time the test listens on it.
    """
    for port in random.sample(range(20000, 32768), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("100 ports between 20000 and 32768 are taken")
