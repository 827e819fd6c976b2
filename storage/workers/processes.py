"""Who works on a claim, and whether that process still lives."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


@cache
def machine_identity() -> str:
    """Host name, boot and process namespace: where this process' number means something.

    Two containers may share a host name, and a machine that was started again shares its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        boot = namespace = ""
    return f"{socket.gethostname()[:200]}/{boot}/{namespace}"


def process_identity(pid: int) -> str:
    """Process id and start time, so that a later process with the same id is told apart."""
    try:
        # Field 22 of /proc/PID/stat; the command in field 2 may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        state, started = fields[0], fields[19]
    except (OSError, IndexError):
        return f"{pid}/"
    return f"{pid}/" if state == "Z" else f"{pid}/{started}"


def is_alive(identity: str) -> bool:
    """Whether the process of this identity runs; call it on its own machine only."""
    pid, _, _ = identity.partition("/")
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OSError):
        return True
    return process_identity(int(pid)) == identity


def is_previous_boot(host: str) -> bool:
    """Whether ``host`` (a ``machine_identity``) is this machine before its last start, as far as names tell."""
    name, _, rest = host.partition("/")
    own_name, _, own_rest = machine_identity().partition("/")
    return name == own_name and rest.partition("/")[0] != own_rest.partition("/")[0]
