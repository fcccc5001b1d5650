"""Simulation of Windows or macOS in a Python process on Linux, for `test_platforms.py`.

Python runs a file of this name at its start, so child processes have the simulation too. Other packages are imported
first, since they would load libraries of the other system. Then the calls that the system lacks are removed.
`LONGVIT_PLATFORM`: win32 or darwin; without it nothing changes. The simulation keeps `subprocess` and paths of Linux.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable

THIRD_PARTY = (
    *("numpy", "torch", "pandas", "scipy.sparse", "scipy.stats", "scipy.ndimage", "scipy.optimize", "sklearn.metrics"),
    *("h5py", "matplotlib.figure", "tifffile", "imagecodecs", "openslide", "PIL.Image", "safetensors.torch", "psutil"),
    *("cyclopts", "rich.console", "jinja2", "yaml", "simplejpeg", "threadpoolctl"),
    *("multiprocessing.connection", "multiprocessing.reduction", "subprocess", "tempfile", "shutil"),
)
"""Packages of every command."""
RARE = (
    *("torch._dynamo", "torch.distributed", "requests", "distributed", "duckdb", "shapely", "tensorboardX", "openpyxl"),
    *("highdicom", "http.server", "asyncio", "webbrowser", "torch.utils.flop_counter"),
)
"""Packages of single modules, for the import of all of them (`LONGVIT_RARE`)."""
MODULES = {
    "win32": ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix_ipc", "syslog"),
    "darwin": (),
}
CALLS = {
    "win32": (
        *("pread", "preadv", "pwrite", "pwritev", "readv", "writev", "sendfile", "fork", "forkpty", "register_at_fork"),
        *("getuid", "geteuid", "getgid", "getegid", "getgroups", "setsid", "getsid", "getpgid", "setpgid", "killpg"),
        *("nice", "getpriority", "setpriority", "statvfs", "fstatvfs", "sysconf", "sysconf_names", "confstr"),
        *("sched_getaffinity", "sched_setaffinity", "sched_yield", "uname", "mkfifo", "mknod", "chown", "fchown"),
        *("fchmod", "fchdir", "chroot", "sync", "fdatasync", "posix_fadvise", "posix_fallocate", "memfd_create"),
        *("waitid", "wait3", "wait4", "WEXITED", "WNOWAIT", "P_PID", "WIFSIGNALED", "WTERMSIG"),
        *("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_SYNC", "O_NOCTTY", "set_blocking"),
        *("get_blocking", "getloadavg", "ttyname", "openpty", "getxattr", "setxattr", "listxattr", "eventfd"),
        *("pidfd_open", "lockf", "posix_spawn", "tcgetpgrp"),
    ),
    "darwin": (
        *("sched_getaffinity", "sched_setaffinity", "memfd_create", "posix_fadvise", "posix_fallocate", "waitid"),
        *("eventfd", "pidfd_open", "fdatasync", "getxattr", "setxattr", "listxattr", "O_DIRECT", "splice"),
    ),
}
SIGNALS = {
    "win32": (
        *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGCHLD", "SIGQUIT", "SIGSTOP", "SIGCONT"),
        *("SIGTSTP", "SIGXCPU", "setitimer", "alarm", "pause", "pthread_sigmask", "pthread_kill", "siginterrupt"),
        *("sigwait", "sigpending"),
    ),
    "darwin": ("SIGRTMIN", "SIGPWR", "sigtimedwait"),
}


def simulate(platform: str) -> None:
    """Makes this process look like one on `platform` (win32, darwin) as far as Python's own modules tell."""
    for name in (*THIRD_PARTY, *(RARE if "LONGVIT_RARE" in os.environ else ())):
        importlib.import_module(name)
    if platform == "win32":
        statvfs = os.statvfs
        shutil.disk_usage = lambda path: disk_usage(statvfs(path))  # type: ignore[assignment]
        sys.modules["msvcrt"] = fake_msvcrt()
        kill = os.kill
        subprocess.Popen.kill = subprocess.Popen.terminate = lambda child: end(child, kill)  # type: ignore[method-assign]
        os.kill = lambda process, number: kill_as_on_windows(process, number, kill)  # type: ignore[assignment]
        open_file = os.open
        os.open = lambda path, *more, **named: open_file(refuse_folder(path), *more, **named)  # type: ignore[assignment]
    for name in MODULES[platform]:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, CALLS[platform]), (signal, SIGNALS[platform])):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.supports_dir_fd.clear()
    sys.platform = platform


def disk_usage(found: os.statvfs_result) -> object:
    """`shutil.disk_usage`, which has a call of its own on Windows."""
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    return shutil._ntuple_diskusage(total, total - free, free)  # type: ignore[attr-defined]


def fake_msvcrt() -> types.ModuleType:
    """`msvcrt.locking` over POSIX locks of bytes: no process gets a byte that another one has."""
    import errno
    import fcntl

    module = types.ModuleType("msvcrt")
    module.LK_NBLCK = 2  # type: ignore[attr-defined]

    def locking(descriptor: int, mode: int, n_bytes: int) -> None:
        assert mode == 2
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, n_bytes, os.lseek(descriptor, 0, os.SEEK_CUR))
        except OSError as error:
            raise PermissionError(errno.EACCES, "locked") from error

    module.locking = locking  # type: ignore[attr-defined]
    return module


def end(child: subprocess.Popen[bytes], kill: Callable[[int, int], None]) -> None:
    """`Popen.kill` and `terminate`, which end a process at once on Windows."""
    if child.poll() is None:
        kill(child.pid, 9)


def kill_as_on_windows(process: int, number: int, kill: Callable[[int, int], None]) -> None:
    """`os.kill` of Windows ends a process at once, or sends a Ctrl-C for signal 0: only psutil may call it here."""
    if not sys._getframe(2).f_globals["__name__"].startswith("psutil"):
        raise AssertionError(f"os.kill({process}, {number}) on Windows")
    kill(process, number)


def refuse_folder(path: object) -> object:
    """The path; on Windows no folder can be opened."""
    if isinstance(path, str | os.PathLike) and os.path.isdir(path):  # noqa: PTH112
        raise PermissionError(13, "Permission denied", os.fspath(path))
    return path


if platform := os.environ.get("LONGVIT_PLATFORM"):
    simulate(platform)
