"""One command goes from an archive of slides to the table of a cell; kills at any stage cost only the work since."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.public.archive_server import ArchiveServer
from tests.reproduce.checkouts import hipt_checkout, mcat_checkout
from tests.reproduce.scaled_archive import chosen_rows, write_archive

from longvit.cli import main
from longvit.reproduce.cells import cell_named
from longvit.reproduce.protocol import read_protocol

pytest.importorskip("requests", reason="needs the extra public")
pytest.importorskip("duckdb", reason="needs the extra public")

TINY = """\
model: longvit_tiny_stem_patch32
side_px: 64
epochs: 1
warmup_epochs: 0
dtype: float32
controls: false
deletion_slides: 0
bootstrap: 20
num_workers: 0
threads: 1
"""
TINY_BASELINE = "epochs: 1\nbootstrap: 20\nthreads: 1\n"
FEW_BAGS = "bags_per_step: 4\n"
"""The training loop of the survival baselines adds up 32 bags, more than a fold of the reduced archive has."""


@dataclass(frozen=True)
class Reduced:
    """A cell on a reduced archive, served on this machine."""

    cell: str
    checkout: Path
    archive: Path
    ids: tuple[str, ...]
    address: str

    def command(self, out: Path, changes: Path, *more: str) -> list[str]:
        options = {"--protocol": self.checkout, "--index": self.archive / "index.parquet", "--changes": changes}
        texts = [str(text) for option in options.items() for text in option]
        rest = ["--endpoint", self.address, "--jobs", "1", "--device", "cpu", "--allow-missing", "--yes"]
        return ["reproduce", self.cell, *texts, *rest, "--out", str(out), *more]


def reduced(cell: str, n: int, folder: Path, server: ArchiveServer) -> Reduced:
    named = cell_named(cell)
    make = hipt_checkout if named.metric_table == 1 else mcat_checkout
    checkout = make(folder / "clone")
    rows = chosen_rows(read_protocol(named, [checkout]), n)
    archive = write_archive(folder, rows, named.protocol.collections[0])
    return Reduced(cell, checkout, archive, tuple(one.slide_id for one in rows), server.address)


def killed_when(arguments: list[str], log: Path, reached: Callable[[], bool]) -> None:
    """Runs the command in a process and kills it as soon as it has come so far."""
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "longvit", *arguments], stderr=output)
        try:
            end = time.monotonic() + 1500
            while not reached():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()


def result_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "result.json").read_text())
    return content


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("cell", "n", "folds", "published"),
    [("table1/brca/4096", 36, 10, "HIPT, published"), ("table2/luad/1024", 30, 5, "MCAT, published")],
)
def test_a_killed_reproduction_resumes_to_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str, n: int, folds: int, published: str
) -> None:
    with ArchiveServer(tmp_path / "served") as server:
        small = reduced(cell, n, tmp_path, server)
        changes, out = tmp_path / "tiny.yaml", tmp_path / "out"
        changes.write_text(TINY)
        command, log = small.command(out, changes), tmp_path / "log.txt"
        killed_when(command, log, lambda: len(list((out / "fetched").glob("*.tif"))) >= 3)
        assert not (out / "run").exists()
        killed_when(command, log, lambda: (out / "run" / "fold_0" / "metrics.json").exists())
        trained_s = (out / "run" / "fold_0" / "metrics.json").stat().st_mtime_ns
        assert main(command) == 1  # the other slides of the table are left out
        assert all(count <= 2 for count in server.gets.values())
    printed = capsys.readouterr().out
    assert f"{cell}: mean ± SD over {folds} folds" in printed
    assert published in printed
    assert (out / "run" / "fold_0" / "metrics.json").stat().st_mtime_ns == trained_s
    assert sorted(path.stem for path in (out / "fetched").glob("*.tif")) == sorted(small.ids)
    result = result_of(out)
    measured = result["measured"]
    assert 0 <= measured["low"] <= measured["mean"] <= measured["high"] <= 1
    for gap in result["gaps"]:
        assert gap["value"] == pytest.approx(measured["mean"] - gap["published_mean"])
        assert gap["low"] <= gap["value"] <= gap["high"]
    assert result["changes"]["side_px"] == 64
    assert "random weights" in result["starts_from"]
    assert len(result["left_out"]) == result["slides"] - n
    assert not list((out / "run" / "canvases").glob("*.tif")), "the canvases were copied"
    assert main([*command[:1], "table1/nsclc/4096", *command[2:]]) == 2  # another cell in the same folder


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("cell", "n", "mean", "published"),
    [
        ("table1/brca/mil", 36, 0.778, "MIL, published"),
        ("table2/luad/deep_sets+concat", 30, 0.616, "Deep Sets, published"),  # features and genes, by patient
    ],
)
def test_a_baseline_is_trained_on_features_of_the_named_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str, n: int, mean: float, published: str
) -> None:
    with ArchiveServer(tmp_path / "served") as server:
        small = reduced(cell, n, tmp_path, server)
        changes, out = tmp_path / "tiny.yaml", tmp_path / "out"
        changes.write_text(TINY_BASELINE + (FEW_BAGS if "table2" in cell else ""))
        assert main(small.command(out, changes)) == 2
        assert "--encoder" in capsys.readouterr().err
        assert main(small.command(out, changes, "--encoder", "stain-texture")) == 1
    result = result_of(out)
    assert result["encoder"] == "stain-texture"
    assert [gap["published_mean"] for gap in result["gaps"]] == [mean]
    assert not list((out / "fetched").glob("*.tif")), "a baseline reads no canvas"
    assert published in capsys.readouterr().out
