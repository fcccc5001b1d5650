"""The resolution: from ordered, named sources, the same whichever reader, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import (
    dicom_series,
    pyramid,
    tissue,
    write_dicom,
    write_ome,
    write_scn,
    write_svs,
    write_tiff,
)

from longvit.errors import InputError
from longvit.slides.mpp import Candidate, aperio_candidate, ome_candidate, resolve_mpp
from longvit.slides.reader import open_slide


def test_slide_without_mpp_names_the_flag_the_column_and_where_it_looked(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", [tissue(128, 128)], mpp=None)
    slide = open_slide(path)
    assert slide.mpp is None
    with pytest.raises(InputError) as caught:
        slide.require_mpp()
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), "openslide.mpp-x", "aperio.MPP", "tiff.XResolution", "--mpp 0.25", "column mpp"):
        assert part in message


def test_given_mpp_goes_before_the_file() -> None:
    slide = open_slide(EXAMPLE_SLIDE, mpp=0.3)
    assert slide.require_mpp() == slide.mpp
    assert slide.mpp is not None
    assert (slide.mpp.x, slide.mpp.y, slide.mpp.source) == (0.3, 0.3, "explicit")


@pytest.mark.parametrize("value", [0, -0.25, float("nan"), float("inf")])
def test_a_given_mpp_that_is_no_resolution_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="not a positive number"):
        open_slide(EXAMPLE_SLIDE, mpp=value)


def test_mpp_is_the_same_whichever_reader(tmp_path: Path) -> None:
    ome = write_ome(
        tmp_path / "a.ome.tif",
        [tissue(128, 128)],
        'PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="250" PhysicalSizeYUnit="nm"',
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    svs = write_svs(tmp_path / "a.svs", [tissue(128, 128)], mpp=0.4)
    plain = write_tiff(tmp_path / "a.tif", [tissue(128, 128)], resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    for path, expected in [(EXAMPLE_SLIDE, 0.499), (ome, 0.25), (svs, 0.4), (plain, 0.5)]:
        found = {open_slide(path, reader=reader).mpp for reader in ("auto", "tiff", "openslide")}  # type: ignore[arg-type]
        assert len(found) == 1
        (mpp,) = found
        assert mpp is not None
        assert (mpp.x, mpp.y) == pytest.approx((expected, expected))


def test_a_72_dpi_leftover_is_not_taken_and_the_message_says_why(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(128, 128)], resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(InputError, match=r"352\.8 µm/px.*72 dpi is a print setting"):
        open_slide(path).require_mpp()
    Image.fromarray(tissue(64, 64)).save(tmp_path / "a.jpg", dpi=(300, 300))
    with pytest.raises(InputError, match=r"jpeg\.density: 84\.67 µm/px.*300 dpi"):
        open_slide(tmp_path / "a.jpg").require_mpp()


@pytest.mark.parametrize(("unit", "per_unit"), [("CENTIMETER", 20_000), ("INCH", 50_800)])
def test_tiff_resolution_counts_where_it_is_a_scanners(tmp_path: Path, unit: str, per_unit: int) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(128, 128)], resolution=(per_unit, per_unit * 2), resolutionunit=unit)
    mpp = open_slide(path).require_mpp()
    assert (mpp.x, mpp.y, mpp.source) == (pytest.approx(0.5), pytest.approx(0.25), "tiff.XResolution")


def test_tiff_resolution_without_a_unit_is_not_taken(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [tissue(128, 128)], resolution=(20_000, 20_000), resolutionunit="NONE")
    with pytest.raises(InputError, match="20000 pixels per no unit"):
        open_slide(path).require_mpp()


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [("0.25", None, 0.25), ("250", "nm", 0.25), ("0.00025", "mm", 0.25), ("0.25", "μm", 0.25), ("2500", "Å", 0.25)],
)
def test_ome_units(value: str, unit: str | None, expected: float) -> None:
    units = f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    candidate = ome_candidate(
        f'<OME><Image><Pixels PhysicalSizeX="{value}" PhysicalSizeY="{value}" {units}/></Image></OME>'
    )
    assert candidate.x == pytest.approx(expected)
    assert candidate.plausible


@pytest.mark.parametrize(
    ("xml", "note"),
    [
        (
            '<OME><Image><Pixels PhysicalSizeX="1" PhysicalSizeXUnit="pixel"/></Image></OME>',
            "unit 'pixel' is not a length",
        ),
        ('<OME><Image><Pixels PhysicalSizeX="0.25"/></Image></OME>', "no PhysicalSizeY"),
        ("<OME><Image>", "OME-XML is damaged"),
        ("<OME/>", "absent"),
    ],
)
def test_ome_without_a_usable_size_says_so(xml: str, note: str) -> None:
    candidate = ome_candidate(xml)
    assert candidate.x is None
    assert note in str(candidate)


def test_aperio_mpp_with_a_decimal_comma() -> None:
    assert aperio_candidate("Aperio …|AppMag = 20|MPP = 0,4990|Left = 2").x == pytest.approx(0.499)


def test_the_first_plausible_source_wins_and_all_are_listed() -> None:
    absent, print_dpi, good, later = (
        Candidate("a"),
        Candidate("b", 352.8, 352.8),
        Candidate("c", 0.5, 0.5),
        Candidate("d", 0.25, 0.25),
    )
    search = resolve_mpp(None, [absent, print_dpi, good, later])
    assert search.mpp is not None
    assert (search.mpp.x, search.mpp.source) == (0.5, "c")
    assert [candidate.source for candidate in search.candidates] == ["a", "b", "c", "d"]


def test_magnification_is_no_resolution(tmp_path: Path) -> None:
    """An SVS that says 40× and nothing else stays without a resolution."""
    slide = open_slide(write_svs(tmp_path / "a.svs", [tissue(128, 128)], mpp=None))
    assert slide.properties["openslide.objective-power"] == "40"
    assert slide.mpp is None


def test_dicom_pixel_spacing_in_millimetres(tmp_path: Path) -> None:
    slide = open_slide(write_dicom(tmp_path / "a.dcm", tissue(128, 128), 0.0004, dicom_series()))
    assert slide.require_mpp().x == pytest.approx(0.4)
    assert [c.source for c in slide.mpp_search.candidates] == ["dicom.PixelSpacing", "dicom.ImagedVolumeWidth"]
    assert slide.mpp_search.candidates[0].x == pytest.approx(0.4)


def test_the_macro_images_resolution_of_an_scn_is_not_the_slides(tmp_path: Path) -> None:
    slide = open_slide(write_scn(tmp_path / "a.scn", pyramid(tissue(256, 128), 2), 0, 0, (300, 200)))
    assert [c.source for c in slide.mpp_search.candidates] == ["openslide.mpp-x"]
