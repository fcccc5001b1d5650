"""The `longvit` command: parse, call one function of the package, print. One file per command.

Exit codes: 0 done; 1 done, but some slides had problems (their number and the file are printed) or a check failed;
2 the input cannot be used (one line says why); 3 another rank of a distributed run is gone (the line names it); 130
stopped by Ctrl-C (the same command goes on where it was), 143 and 138 a training that SIGTERM or SIGUSR1 stopped, after
a checkpoint.
`LONGVIT_DEBUG=1` shows the traceback behind a one-line error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from longvit import __version__
from longvit.cli.benchmark import benchmark
from longvit.cli.canvas import canvas
from longvit.cli.cohort import cohort
from longvit.cli.convert import convert
from longvit.cli.demo import demo
from longvit.cli.doctor import doctor
from longvit.cli.embed import embed
from longvit.cli.evaluate import evaluate
from longvit.cli.features import features
from longvit.cli.info import info
from longvit.cli.plan import plan
from longvit.cli.predict import predict
from longvit.cli.pretrain import pretrain
from longvit.cli.recipes import recipes
from longvit.cli.status import status
from longvit.cli.tables import tables
from longvit.cli.tiles import tiles
from longvit.cli.train import train
from longvit.config import one_line, recipe_config
from longvit.errors import InputError
from longvit.interrupts import lost_interrupts_come_again

app = App(
    name="longvit",
    help="One model that reads a whole slide: from the gigapixel file to the prediction.",
    version=f"longvit {__version__}",
    help_format="markdown",
    help_epilogue="Start with `longvit demo`. Every command has its own `--help` with examples.",
    config=recipe_config,
    default_parameter=Parameter(negative_iterable=()),  # no --empty-split beside --split
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(demo, sort_key=0)
app.command(doctor, sort_key=1)
app.command(info, sort_key=2)
app.command(train, sort_key=3)
app.command(pretrain, sort_key=3)
app.command(predict, sort_key=4)
app.command(embed, sort_key=5)
app.command(canvas, sort_key=5)
app.command(status, sort_key=5)
app.command(tiles, sort_key=6)
app.command(features, sort_key=6)
app.command(convert, sort_key=6)
app.command(cohort)
app.command(benchmark, sort_key=10)
app.command(evaluate, sort_key=10)
app.command(tables, sort_key=11)
app.command(recipes, sort_key=12)
app.command(plan, sort_key=13)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a rank of torchrun's ends with it."""
    code = _run(arguments)
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
        with lost_interrupts_come_again():
            code = app(arguments, exit_on_error=False, print_error=False, help_on_error=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        return _fail(f"{one_line(error)} See: {_command_of(error)} --help", debug)
    except InputError as error:
        return _fail(one_line(error), debug, getattr(error, "exit_code", 2))  # `parallel.RankLostError` has one
    except KeyboardInterrupt as error:
        print("\nlongvit: stopped; the same command goes on where it was", file=sys.stderr)
        return getattr(error, "exit_code", 130)  # `longvit.training.interruption.Interrupted` has one
    except BrokenPipeError:  # `longvit info … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command_of(error: CycloptsError) -> str:
    return " ".join(("longvit", *(error.command_chain or ())))


def _fail(text: str, debug: bool, exit_code: int = 2) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"longvit: {text}", file=sys.stderr)
    return exit_code
