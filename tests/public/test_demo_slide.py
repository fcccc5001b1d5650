"""The public slide of the demo is the pinned one, small and free, and the demo runs on what the archive sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.public.archive import BUCKET
from tests.public.archive_server import ArchiveServer
from tests.public.small_index import row, write_index
from tests.slides.slide_files import dicom_series, tissue, write_dicom

from longvit.cli import main
from longvit.errors import InputError
from longvit.public.demo_slide import COLLECTION, MOST_BYTES, SERIES_UID, fetch_demo_slide
from longvit.public.idc_index import IdcIndex
from longvit.public.selection import select

pytest.importorskip("duckdb", reason="needs the extra public")
pytest.importorskip("requests", reason="needs the extra public")


def index_with(folder: Path, **values: object) -> IdcIndex:
    series = row(COLLECTION, "C3N-02005", "HE tumor", SERIES_UID, **({"license_short_name": "CC BY 4.0"} | values))
    return IdcIndex(write_index(folder / "index.parquet", [series]))


def test_the_real_index_has_the_pinned_slide() -> None:
    pytest.importorskip("idc_index_data", reason="needs the extra public")
    (slide,) = select([COLLECTION], ids=[SERIES_UID]).slides
    assert 10**7 < slide.n_bytes <= MOST_BYTES
    assert slide.licence == "CC BY 4.0"
    assert slide.case_id == "C3N-02005"


@pytest.mark.parametrize("values", [{"series_size_MB": 61.0}, {"license_short_name": "CC NC"}])
def test_a_slide_that_became_large_or_unfree_is_refused(tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises(InputError, match="the slide of the demo has"):
        fetch_demo_slide(tmp_path / "out", index=index_with(tmp_path, **values))


def test_two_slides_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--public", "--slide", "a.svs", "--out", str(tmp_path)]) == 2
    assert "two slides" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_runs_on_a_slide_of_the_archive(tmp_path: Path) -> None:
    from longvit.config import load_settings
    from longvit.demo import run_demo
    from longvit.finetuning.settings import FinetuneSettings

    served = tmp_path / "served" / BUCKET / SERIES_UID
    served.mkdir(parents=True)
    file = write_dicom(served / "0.dcm", tissue(2220, 2967, 0, 0), 0.000499, dicom_series(), 1, 256)
    index = index_with(tmp_path, series_size_MB=file.stat().st_size / 1e6)
    with ArchiveServer(tmp_path / "served") as server:
        slide, citation = fetch_demo_slide(tmp_path / "out", index=index, endpoint=server.address)
        again = fetch_demo_slide(tmp_path / "out", index=index, endpoint=server.address)
        assert (slide, citation) == again
        assert sum(server.gets.values()) == 1
    assert citation == f"https://doi.org/10.5281/{COLLECTION}"
    settings = replace(
        load_settings(FinetuneSettings, "tiny", device="cpu"), epochs=1, warmup_epochs=0, side_px=64, bootstrap=20
    )
    outcome = run_demo(tmp_path / "demo", slide=slide, device="cpu", settings=settings)
    assert outcome.report.stat().st_size > 10_000
    assert outcome.heat_map_png.is_file()
