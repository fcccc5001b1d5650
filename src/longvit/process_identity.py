"""Identity of processes and of this machine, for leases and temporary files that other processes find.

Linux tells both in /proc. On other systems psutil does.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any


def is_running(process: Any, started: Any = None) -> bool:
    """True if a process of this host exists and has the given start (`start_of`)."""
    try:
        if not _exists(int(process)):
            return False
    except (OSError, TypeError, ValueError, OverflowError):  # another user's; or not a number
        return True
    start = start_of(int(process))
    return started is None or start is None or start == started


def start_of(process: int) -> int | None:
    """Start of a process: kernel ticks since boot on Linux, else 1/100 s since 1970; None where it is not known."""
    if sys.platform == "linux":
        try:
            # The name in brackets may hold spaces and brackets: count from the last one.
            return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
        except (OSError, ValueError, IndexError):
            return None
    import psutil

    with suppress(psutil.Error, OSError, ValueError, OverflowError):
        return round(100 * psutil.Process(process).create_time())
    return None


@cache
def this_host() -> str:
    """Identity of this machine since its boot: host name, boot id and process namespace.

    A container numbers its processes from 1, so it counts as a separate host. Other systems than Linux have the host
    name alone; the start of a process then tells processes of two boots apart.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # no Linux
        pass
    return " ".join(parts)


def memory_bytes() -> int:
    """Memory of this machine."""
    if sys.platform == "linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.virtual_memory().total)


def _exists(process: int) -> bool:
    if sys.platform == "win32":  # os.kill(number, 0) sends a Ctrl-C there
        import psutil

        return bool(psutil.pid_exists(process))
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
