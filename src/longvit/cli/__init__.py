"""The `longvit` command: parse, call one function of the package, print. A file per command (`commands` has all).

Exit codes: 0 done; 1 done, but some slides had problems (their number and the file are printed) or a check failed;
2 the input cannot be used (one line says why); 3 another rank of a distributed run is gone (the line names it); 70 a
fault of longvit itself; 71 the system refused (memory, open files, a disk); 74 done, but standard output could not be
written; 130 stopped by Ctrl-C (the same command goes on where it was), 143 and 138 a training that SIGTERM or SIGUSR1
stopped, after a checkpoint.
`LONGVIT_DEBUG=1` shows the traceback behind a one-line error.
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
_OF_A_NAME = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)
"""What is wrong with a file that the user named, or with the way to it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a rank of torchrun's ends with it."""
    steady_streams()
    code = _run(arguments)
    if (error := output_error()) is not None:
        code = code or NO_OUTPUT
        print(f"longvit: standard output: not written: {error.strerror or error}", file=sys.stderr)
    if "RANK" in os.environ and "torch" in sys.modules:
        # All is written. At the interpreter's end gloo's threads may still let go of tensors, for which they want the
        # GIL, and abort the process (torch 2.13: "terminate called without an active exception", 1 run in 5); and
        # groups with a dead rank would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    # torch's OpenMP threads wait for each other in a busy loop. On a machine that others use too that loop takes the
    # cores from those who have work: two trainings on 2 cores took 1.43 s a step each, with this 0.22 s; alone 0.127
    # and 0.123 s (2026-11). Read by libgomp when torch is imported, hence here.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    debug = os.environ.get("LONGVIT_DEBUG", "") not in ("", "0")
    try:
        with resend_swallowed_interrupts():
            code = _call(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        # `parallel.RankLostError` has a code of its own
        return _fail(" ".join(str(error).split()), debug, getattr(error, "exit_code", 2))
    except KeyboardInterrupt as error:
        print("\nlongvit: stopped; the same command goes on where it was", file=sys.stderr)
        return getattr(error, "exit_code", 130)  # `longvit.training.interruption.Interrupted` has one
    except Exception as error:  # the last net: what comes here should have been an `InputError`
        return _unexpected(error, debug)


def _call(arguments: Sequence[str] | None) -> int:
    """Parses and calls. All is imported in here, so that what an import raises (no memory, a Ctrl-C) is a line too."""
    from cyclopts import CycloptsError

    from longvit.config import one_line

    try:
        code = sys.modules[__name__].app(arguments, exit_on_error=False, print_error=False, help_on_error=False)
    except CycloptsError as error:
        command = " ".join(("longvit", *(error.command_chain or ())))
        raise InputError(f"{one_line(error)} See: {command} --help") from error
    return code if isinstance(code, int) else 0


def __getattr__(name: str) -> Any:
    """`app`, the tree of commands, loaded when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from longvit.cli.commands import app

    return app


def _unexpected(error: Exception, debug: bool) -> int:
    text = " ".join(str(error).split())[:500] or "no further word"
    if is_out_of_memory(error):
        return _fail(f"not enough memory ({type(error).__name__}: {text})", debug, REFUSED)
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is not None:
            name = printable(os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename))
            return _fail(f"{name}: {error.strerror}", debug, 2 if error.errno in _OF_A_NAME else REFUSED)
        return _fail(f"the system refused: {text}", debug, REFUSED)
    where = "" if debug else "; LONGVIT_DEBUG=1 shows where, please report it"
    return _fail(f"a fault of longvit: {type(error).__name__}: {text}{where}", debug, FAULT)


def _fail(text: str, debug: bool, exit_code: int = 2) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"longvit: {text}", file=sys.stderr)
    return exit_code
