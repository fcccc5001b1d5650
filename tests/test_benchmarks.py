"""Every script of benchmarks/ can be imported and answers --help: a renamed module would break it unseen."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(
    path.name for path in (ROOT / "benchmarks").glob("*.py") if 'if __name__ == "__main__":' in path.read_text()
)
ASK_ALL = """
import contextlib, io, json, runpy, sys
from pathlib import Path

folder, *names = sys.argv[1:]
sys.path[0] = folder  # as for a script that is started there
answers = {}
for name in names:
    sys.argv, out = [name, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(Path(folder, name)), run_name="__main__")
    except SystemExit as error:
        answers[name] = out.getvalue() if not error.code else f"exit code {error.code}"
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """Script -> its help, or its error; all in one process, which loads torch once."""
    command = [sys.executable, "-c", ASK_ALL, str(ROOT / "benchmarks"), *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_is_not_left_behind_by_a_renamed_module(name: str, answers: dict[str, str]) -> None:
    answer = answers.get(name, "it ended without an answer")
    if answer == "ModuleNotFoundError: No module named 'triton'":
        pytest.skip("needs triton (make kernels)")
    assert answer.startswith("usage:"), answer
