"""`longvit fetch` as a user types it: the plan, the slides from a local archive, ids without a slide, exit codes."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tests.public.archive import BUCKET, write_series
from tests.public.archive_server import ArchiveServer
from tests.public.gdc_server import GdcServer, hit
from tests.public.small_index import ROWS, row, write_index
from tests.slides.slide_files import pyramid, tissue, write_svs

from longvit.cli import main
from longvit.public.fetch_job import FetchSettings
from longvit.public.fetch_plan import MB_PER_S, plan_fetch, plan_json, plan_lines
from longvit.public.idc_index import IdcIndex
from longvit.public.selection import select
from longvit.slides.canvas import read_canvas
from longvit.slides.reader import open_slide

pytest.importorskip("duckdb", reason="needs the extra public")
pytest.importorskip("requests", reason="needs the extra public")

Captured = pytest.CaptureFixture[str]
TUMOUR, NORMAL = "TCGA-UW-A7GC-01Z-00-DX1.D2D6FCC6", "TCGA-UW-A7GC-11Z-00-DX1.ADAF7B0F"
QUICK = ["--side-px", "64", "--jobs", "1", "--device", "cpu", "--retries", "0", "--network-timeout-s", "5"]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_index(tmp_path / "idc_index.parquet", ROWS)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_help_shows_examples(capsys: Captured) -> None:
    assert main(["fetch", "--help"]) == 0
    text = capsys.readouterr().out
    for words in ("longvit fetch tcga-brca --dry-run", "--disk-gb", "--keep-slides", "--cluster", "--collection"):
        assert words in text


def test_a_dry_run_says_what_would_be_done_and_does_nothing(index: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    assert main(["fetch", "tcga-kich", "--index", str(index), "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for words in (
        "archive     idc_index.parquet",
        "slides      2 of 1 patients, 9.3 MiB (tcga-kich 2)",
        "1 frozen sections are left out",
        "licence     CC BY 3.0",
        "cite        https://doi.org/10.5281/tcga_kich",
        "at 50 MB/s (assumed",
        "disk        at most 105.3 MiB: 9.3 MiB of slides at a time + 96.0 MiB of canvases",
    ):
        assert words in text
    assert not out.exists()


def test_the_plan_as_json_has_all_ids_and_bytes(index: Path, tmp_path: Path, capsys: Captured) -> None:
    ids = [TUMOUR, "TCGA-OR-A5J1-01Z-00-DX1", *(f"TCGA-ZZ-{n:04d}-01Z-00-DX1" for n in range(9))]
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("slide_id\n" + "\n".join(ids) + "\n")
    words = ["fetch", "--slides", str(cohort), "--index", str(index), "--dry-run", "--keep-slides"]
    assert main([*words, "--json", "--mb-per-s", "2", "--disk-gb", "0.001"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert (plan["slides"], plan["bytes"], plan["seconds"]) == (1, 7_250_000, 7.25 / 2)
    assert [one["listed_id"] for one in plan["missing"]] == ids[2:]
    assert [one["listed_id"] for one in plan["ambiguous"]] == ids[1:2]
    most, canvases = int(0.001 * 2**30), 3 * 4096**2
    assert plan["disk_at_most"]["bytes"] == most + 7_250_000 + canvases
    assert plan["above_disk_bound"] == [TUMOUR]
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "missing     9 ids" in text
    assert "… and 4 more (--json has all)" in text
    assert "ambiguous   1 ids" in text


def test_all_collections_with_slides_are_listed(index: Path, capsys: Captured) -> None:
    assert main(["fetch", "--list", "--index", str(index)]) == 0
    text = capsys.readouterr().out
    assert "tcga-kich" in text
    assert "rider-ct" not in text
    assert main(["fetch", "--list", "--index", str(index), "--json"]) == 0
    rows = {one["collection"]: one for one in json.loads(capsys.readouterr().out)["collections"]}
    assert rows["nlst"] == {"collection": "nlst", "slides": 1, "bytes": 2_500_000}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "name a collection"),
        (["tcga-kihc"], "did you mean tcga-kich"),
        (["tcga-kich", "--mb-per-s", "0"], "--mb-per-s 0: more than 0"),
        (["tcga-kich", "--disk-gb", "0"], "--disk-gb 0: more than 0"),
        (["tcga-kich", "--no-canvas"], "nothing to make of the slides"),
        (["--slides", "no.csv"], "no.csv: no such file"),
        (["--folds", "no"], "no: no such folder"),
        (["--slides", "a", "--folds", "b"], "two lists of slides"),
        (["--manifest", "no.txt"], "an index of IDC; leave it out for the GDC"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], error: str, index: Path, capsys: Captured) -> None:
    assert main(["fetch", *words, "--index", str(index), "--dry-run"]) == 2
    text = capsys.readouterr().err
    assert error in text
    assert text.count("\n") == 1


def make_series(folder: Path, uid: str, number: int) -> Path:
    """The source TIFF of a series that the archive serves."""
    (folder / "source").mkdir(exist_ok=True)
    pixels = pyramid(tissue(320, 256, 300 * number, 900), 2)
    source = write_svs(folder / "source" / f"{uid}.tif", pixels, 0.25, photometric="ycbcr")
    write_series(source, folder / "served" / BUCKET / uid)
    return source


def test_listed_slides_of_idc_become_canvases_and_ids_without_one_rows(tmp_path: Path, capsys: Captured) -> None:
    sources = {
        slide_id: make_series(tmp_path, uid, n) for n, (slide_id, uid) in enumerate([(TUMOUR, "1.2"), (NORMAL, "1.1")])
    }
    index, out = write_index(tmp_path / "index.parquet", ROWS), tmp_path / "out"
    cohort = tmp_path / "cohort.csv"
    cohort.write_text(f"slide_id,label\n{TUMOUR}.svs,a\n{NORMAL}.svs,b\nTCGA-UW-A7GC-01Z-00-DX7,a\n")
    with ArchiveServer(tmp_path / "served") as server:
        words = ["fetch", "--slides", str(cohort), "--index", str(index), "--out", str(out), *QUICK]
        assert main([*words, "--endpoint", server.address]) == 1
        assert "2 done" in capsys.readouterr().err
        (missing,) = rows_of(out / "unresolved.csv")
        assert (missing["id"], missing["kind"]) == ("TCGA-UW-A7GC-01Z-00-DX7", "missing")
        assert "no section DX7" in missing["reason"]
        for slide_id, source in sources.items():
            with open_slide(source) as slide:
                assert np.array_equal(read_canvas(out / f"{slide_id}.tif").pixels, slide.canvas(64).pixels)
        fetched = {one["slide_id"]: one for one in rows_of(out / "fetched.csv")}
        assert fetched[TUMOUR]["series_uid"] == "1.2"
        assert fetched[NORMAL]["case_id"] == "TCGA-UW-A7GC"
        assert not list(out.rglob("*.dcm"))
        n_gets = sum(server.gets.values())
        cohort.write_text(f"slide_id,label\n{TUMOUR}.svs,a\n{NORMAL}.svs,b\n")
        assert main([*words, "--endpoint", server.address]) == 0
        captured = capsys.readouterr()
        assert "finished    2 before; 0.0 MiB to download" in captured.out
        assert "2 finished before" in captured.err
        assert sum(server.gets.values()) == n_gets
    assert not (out / "unresolved.csv").exists()


def test_a_project_of_the_gdc_becomes_canvases_of_its_svs_files(tmp_path: Path, capsys: Captured) -> None:
    served, out = tmp_path / "served", tmp_path / "out"
    hits = []
    for n, slide_id in enumerate((TUMOUR, NORMAL)):
        source = write_svs(tmp_path / f"{slide_id}.svs", pyramid(tissue(320, 256, 300 * n, 900), 1), 0.25)
        one = hit(source.name, "TCGA-UW-A7GC", project="TCGA-KICH", content=source.read_bytes())
        hits.append(one)
        (served / "data").mkdir(parents=True, exist_ok=True)
        (served / "data" / one["file_id"]).write_bytes(source.read_bytes())
    with GdcServer(served, hits) as server:
        words = ["fetch", "tcga-kich", "--source", "gdc", "--out", str(out), "--keep-slides", *QUICK]
        assert main([*words, "--endpoint", server.address]) == 0
    assert "archive     GDC (http://127.0.0.1" in capsys.readouterr().out
    for one in hits:
        slide_id = one["file_name"].removesuffix(".svs")
        with open_slide(tmp_path / one["file_name"]) as slide:
            assert np.array_equal(read_canvas(out / f"{slide_id}.tif").pixels, slide.canvas(64).pixels)
        kept = out / "slides" / slide_id / one["file_name"]
        assert hashlib.md5(kept.read_bytes()).hexdigest() == one["md5sum"]
    manifest = tmp_path / "manifest.txt"
    lines = ["\t".join((one["file_id"], one["file_name"], one["md5sum"], str(one["file_size"]))) for one in hits]
    manifest.write_text("\n".join(["id\tfilename\tmd5\tsize", *lines]) + "\n")
    assert main(["fetch", "--manifest", str(manifest), "--out", str(out), "--side-px", "64", "--dry-run"]) == 0
    assert "finished    2 before" in capsys.readouterr().out


def test_a_plan_takes_the_rate_of_the_last_run_in_the_folder(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = select(["tcga-kich"], index=IdcIndex(index))
    plan = plan_fetch(selection, tmp_path, FetchSettings())
    assert (plan.rate_mb_s, plan.is_measured) == (MB_PER_S, False)

    class Run:
        verb, per_hour = "fetch", 3600.0

    monkeypatch.setattr("longvit.public.fetch_plan.status", lambda folder: (Run(),))
    plan = plan_fetch(selection, tmp_path, FetchSettings())
    assert plan.is_measured
    assert plan.rate_mb_s == pytest.approx(9.75 / 2)
    assert plan.seconds == pytest.approx(2.0)
    assert any("measured by the last run here" in line for line in plan_lines(plan))
    assert plan_json(plan)["rate_is_measured"] is True


def test_a_disk_that_is_too_small_is_said_before_anything_is_downloaded(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("longvit.public.fetch_plan.shutil.disk_usage", lambda folder: Usage())
    lines = plan_lines(plan_fetch(select(["tcga-kich"], index=IdcIndex(index)), tmp_path / "a" / "b", FetchSettings()))
    assert any("more than is free: lower --disk-gb" in line for line in lines)


def test_a_large_collection_is_shown_in_gib_and_hours(tmp_path: Path) -> None:
    rows = [row("gtex", f"GTEX-{n}", "PG PE HE", f"9.{n}", series_size_MB=9000.0) for n in range(30)]
    selection = select(["gtex"], index=IdcIndex(write_index(tmp_path / "index.parquet", rows)))
    text = "\n".join(plan_lines(plan_fetch(selection, tmp_path, FetchSettings(encoder="stain-texture"))))
    assert "30 of 30 patients, 251 GiB" in text
    assert "1.5 h at 50 MB/s" in text
    assert "and features" in text
