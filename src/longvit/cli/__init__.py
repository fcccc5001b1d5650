"""The `longvit` command: parses, calls one function of the package, prints. One file per command (see `commands`).

Exit codes:
    0    Done.
    1    Done, but some slides had problems (their number and the file are printed), or a check failed.
    2    The input cannot be used; one line gives the reason.
    3    Another rank of a distributed run died; the line names it.
    70   A bug in longvit.
    71   The system refused memory, open files or disk space.
    74   Done, but standard output could not be written.
    130  Interrupted by Ctrl-C; rerun the same command to resume.
    143, 138  A training stopped by SIGTERM or SIGUSR1, after a checkpoint.

`LONGVIT_DEBUG=1` shows the traceback of a one-line error.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

from longvit.cli.streams import output_error, steady_streams
from longvit.errors import InputError, is_out_of_memory
from longvit.files import printable
from longvit.processes.interrupts import resend_swallowed_interrupts

FAULT, REFUSED, NO_OUTPUT = 70, 71, 74
"""EX_SOFTWARE, EX_OSERR, EX_IOERR of sysexits.h."""
_PATH_ERRORS = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)
"""Errors of a path that the user gave: the file itself, or a folder above it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a rank of torchrun exits with it."""
    steady_streams()
    code = _run(arguments)
    if (error := output_error()) is not None:
        code = code or NO_OUTPUT
        print(f"longvit: standard output: not written: {error.strerror or error}", file=sys.stderr)
    if "RANK" in os.environ and "torch" in sys.modules:
        # All output is written. At interpreter exit, gloo's threads may still free tensors, which needs the GIL, and
        # abort the process (torch 2.13: "terminate called without an active exception", 1 run in 5). Process groups
        # with a dead rank would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    # torch's OpenMP threads wait for each other in a busy loop, which blocks the cores for other processes. Two
    # trainings on 2 cores took 1.43 s per step each, with this setting 0.22 s; alone 0.127 and 0.123 s (2026-11).
    # libgomp reads it when torch is imported, so it is set here.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    debug = os.environ.get("LONGVIT_DEBUG", "") not in ("", "0")
    try:
        with resend_swallowed_interrupts():
            code = _call(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        # `parallel.RankLostError` has its own exit code
        return _fail(" ".join(str(error).split()), debug, getattr(error, "exit_code", 2))
    except KeyboardInterrupt as error:
        print("\nlongvit: interrupted; rerun the same command to resume", file=sys.stderr)
        return getattr(error, "exit_code", 130)  # `longvit.training.interruption.Interrupted` has its own
    except Exception as error:  # last resort: an expected error should have been an `InputError`
        return _unexpected(error, debug)


def _call(arguments: Sequence[str] | None) -> int:
    """Parses and calls. Imports happen here, so that their errors (no memory, Ctrl-C) are one line too."""
    from cyclopts import CycloptsError

    from longvit.config import usage_error_line

    try:
        code = sys.modules[__name__].app(arguments, exit_on_error=False, print_error=False, help_on_error=False)
    except CycloptsError as error:
        command = " ".join(("longvit", *(error.command_chain or ())))
        raise InputError(f"{usage_error_line(error)} See: {command} --help") from error
    return code if isinstance(code, int) else 0


def __getattr__(name: str) -> Any:
    """Loads `app`, the tree of commands, on first use."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from longvit.cli.commands import app

    return app


def _unexpected(error: Exception, debug: bool) -> int:
    text = " ".join(str(error).split())[:500] or "no message"
    if is_out_of_memory(error):
        return _fail(f"not enough memory ({type(error).__name__}: {text})", debug, REFUSED)
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is not None:
            name = printable(os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename))
            return _fail(f"{name}: {error.strerror}", debug, 2 if error.errno in _PATH_ERRORS else REFUSED)
        return _fail(f"the system refused: {text}", debug, REFUSED)
    hint = "" if debug else "; please report it with the traceback that LONGVIT_DEBUG=1 shows"
    return _fail(f"a bug in longvit: {type(error).__name__}: {text}{hint}", debug, FAULT)


def _fail(text: str, debug: bool, exit_code: int = 2) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"longvit: {text}", file=sys.stderr)
    return exit_code
