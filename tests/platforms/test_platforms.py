"""Windows and macOS, simulated by removing Linux-only calls: imports, doctor, a slide, a training, leases.

The other system is simulated (`sitecustomize.py`): its missing calls are removed, other packages stay those of Linux.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.conftest import EXAMPLE_SLIDE, ROOT
from tests.finetuning.study import write_study

PLATFORMS = pytest.mark.parametrize("platform", ["win32", "darwin"])


def python(platform: str, code: str, *arguments: object, cwd: Path, rare: bool = False) -> str:
    """Standard output of `python -c code` on a simulated system; fails with its standard error."""
    environment = os.environ | {
        "LONGVIT_PLATFORM": platform,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT / "src")]),
        **({"LONGVIT_RARE": "1"} if rare else {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stdout


COMMAND = "import sys; from longvit.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@PLATFORMS
def test_every_module_is_imported_without_the_calls_of_linux(platform: str, tmp_path: Path) -> None:
    """All but those that need a package of an extra: the Triton kernels."""
    code = """
        import runpy, sys
        assert sys.platform != "linux"
        runpy.run_path(sys.argv[1], run_name="__main__")
        """
    output = python(platform, code, ROOT / ".ci" / "import_all.py", cwd=tmp_path, rare=True)
    n, without = re.findall(r"\d+", output)[:2]
    assert int(n) > 400
    assert int(without) <= 10


@pytest.mark.slow
def test_windows_has_a_doctor_and_reads_slides_in_a_process(tmp_path: Path) -> None:
    assert "all is well" in python("win32", COMMAND, "doctor", cwd=tmp_path)
    assert "2,220 × 2,967" in python("win32", COMMAND, "info", EXAMPLE_SLIDE, cwd=tmp_path)
    python("win32", COMMAND, "canvas", EXAMPLE_SLIDE, "--out", "c", "--side-px", 256, "--workers", 1, cwd=tmp_path)
    assert (tmp_path / "c" / "CMU-1-Small-Region.tif").exists()


@pytest.mark.slow
def test_windows_reads_the_same_pixels_in_many_threads(tmp_path: Path) -> None:
    code = """
        import hashlib, os, sys, time
        from longvit import open_slide
        from longvit.slides.tiled_reader import SharedFile
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        path = Path(sys.argv[1])
        data, file = path.read_bytes(), SharedFile(path)
        places = [(i * 7919 % (len(data) - 500), i % 499 + 1) for i in range(500)]
        seek = os.lseek
        os.lseek = lambda *place: (seek(*place), time.sleep(1e-4))[0]  # another thread may move the position now
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda p: file.read(*p) == data[p[0] : p[0] + p[1]], places))
        with open_slide(path) as slide:
            print(hashlib.sha256(slide.canvas(512).pixels.tobytes()).hexdigest())
        """
    hashes = {python(platform, code, EXAMPLE_SLIDE, cwd=tmp_path) for platform in ("win32", "")}
    assert len(hashes) == 1


@pytest.mark.slow
def test_windows_trains_an_epoch_to_the_bits_of_linux(tmp_path: Path) -> None:
    cohort = write_study(tmp_path / "study")
    (tmp_path / "quick.yaml").write_text("model: longvit_tiny_patch32\nside_px: 64\nlr: 1e-3\nbootstrap: 50\n")
    for platform in ("win32", ""):  # "": no simulation
        words = ["train", cohort, "--recipe", "quick.yaml", "--epochs", 1, "--device", "cpu", "--threads", 1]
        python(platform, COMMAND, *words, "--out", platform or "linux", cwd=tmp_path)
    for name in ("predictions.csv", "history.csv", "model/model.safetensors"):
        assert (tmp_path / "win32" / name).read_bytes() == (tmp_path / "linux" / name).read_bytes(), name
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.slow
@PLATFORMS
def test_one_process_at_a_time_has_a_run_and_a_lease(platform: str, tmp_path: Path) -> None:
    """The lock of a run folder; a lease of a process that lives, and of one that died."""
    output = python(
        platform,
        """
        import json, subprocess, sys
        from pathlib import Path
        from longvit.errors import InputError
        from longvit.files import replace, write_text
        from longvit.locks import folder_lock
        from longvit.process_identity import is_running, memory_bytes, start_of
        from longvit.processes.leases import Leases
        from longvit.training.run_folder import exclusive_lock
        from longvit.training.run_status import _is_locked

        OTHER = '''
        import os, sys
        from pathlib import Path
        from longvit.errors import InputError
        from longvit.processes.leases import Leases
        from longvit.training.run_folder import exclusive_lock
        from longvit.training.run_status import _is_locked
        try:
            with exclusive_lock(Path(".")):
                print("locked", end=" ")
        except InputError:
            print("refused", _is_locked(Path("run.lock")), end=" ")
        lease = Leases().acquire(Path("x.claim"))
        print(lease is not None)
        sys.stdout.flush()
        os._exit(0)  # as if killed: its lease stays
        '''

        def other():
            done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        with Leases() as leases, exclusive_lock(Path(".")), folder_lock(Path(".")):
            with leases.take(Path("x")) as is_mine:
                assert is_mine
                print(other())
        print(other())
        content = json.loads(Path("x.claim").read_text())
        assert content["started"] is not None and not is_running(content["process"], content["started"])
        with Leases() as leases:
            assert leases.acquire(Path("x.claim")) is not None  # of a process that no longer runs
        import os
        assert is_running(os.getpid(), start_of(os.getpid())) and not is_running(os.getpid(), 1)
        assert not is_running(2**22 + 1)
        assert memory_bytes() > 2**28
        write_text("a.txt", "old")
        write_text("a.txt", "new")
        print(Path("a.txt").read_text())
        """,
        cwd=tmp_path,
    )
    assert output.splitlines() == ["refused True False", "locked True", "new"]
