"""Annotation file of a slide: which file, which classes, mask images, and the hash that decides about a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.annotations.made import area_of, feature, rectangle, write_geojson

from longvit.annotations.area_file import annotations_fingerprint, check_annotations, find_area_file
from longvit.annotations.settings import AnnotationSettings
from longvit.errors import InputError
from longvit.slides.placement import Box

BOUNDS = Box(0, 0, 100, 80)
SQUARE = feature(rectangle(10, 20, 30, 40), "Tumor")
OTHER = feature(rectangle(50, 20, 70, 40), "Stroma")


def chosen(folder: Path, *keep: str, exclude: tuple[str, ...] = ()) -> AnnotationSettings:
    return AnnotationSettings(regions=folder, region_class=keep, exclude_class=exclude)


def test_a_slide_without_a_file_and_with_two_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.geojson: no such file, nor .geojson.gz or .png"):
        find_area_file(chosen(tmp_path), "a")
    write_geojson(tmp_path / "a.geojson", [SQUARE])
    write_geojson(tmp_path / "a.geojson.gz", [SQUARE])
    with pytest.raises(InputError, match=r"a.geojson: a.geojson.gz is there too; keep one of them"):
        find_area_file(chosen(tmp_path), "a")


def test_without_a_folder_there_is_nothing_to_find() -> None:
    assert find_area_file(AnnotationSettings(), "a") is None
    assert annotations_fingerprint(AnnotationSettings(), ["a"]) == {}
    check_annotations(AnnotationSettings(), ["a"])


def test_a_slide_without_the_class_gets_the_nearest_name_and_the_classes(tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "a.geojson", [SQUARE, SQUARE, OTHER, feature(rectangle(1, 1, 2, 2))])
    with pytest.raises(InputError) as caught:
        area_of(path, BOUNDS, keep=["tumour"])
    assert str(caught.value) == (
        f"{path}: no annotation of class 'tumour'; did you mean 'Tumor'? classes there: "
        "(none) (1), Stroma (1), Tumor (2)"
    )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"region_class": ("Tumor",)}, "class 'Tumor' is chosen, but no folder of annotations; pass --regions FOLDER"),
        ({"regions": Path("missing")}, "--regions missing: no such folder"),
        ({"regions": Path("some"), "region_class": ("A",), "exclude_class": ("A",)}, "class 'A' is in --region-class"),
        ({"regions": Path("some"), "exclude_class": ("Stromal",)}, "class 'Stromal'; did you mean 'Stroma'"),
        ({"regions": Path("some"), "region_class": ("Tumor", "X")}, "class 'X'; classes there: Stroma "),
        ({"regions": Path("empty")}, "no file of any slide; files are named like the slide: a.geojson"),
    ],
)  # fmt: skip
def test_settings_that_suit_no_slide_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_geojson(tmp_path / "some" / "a.geojson", [SQUARE])
    write_geojson(tmp_path / "some" / "b.geojson.gz", [OTHER])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        check_annotations(AnnotationSettings(**settings), ["a", "b", "c"])  # type: ignore[arg-type]
    assert line in str(caught.value)
    check_annotations(chosen(tmp_path / "some", "Tumor", exclude=("Stroma",)), ["a", "b", "c"])


def test_a_damaged_file_does_not_stop_the_other_slides(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", [SQUARE])
    (tmp_path / "b.geojson").write_text("{")
    check_annotations(chosen(tmp_path, "Tumor"), ["a", "b"])


def test_the_key_is_that_of_content_and_classes(tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "1" / "a.geojson", [SQUARE])
    copy = write_geojson(tmp_path / "2" / "a.geojson", [SQUARE])
    other = write_geojson(tmp_path / "3" / "a.geojson", [OTHER])
    keys = [find_area_file(chosen(p.parent), "a").key() for p in (path, copy, other)]  # type: ignore[union-attr]
    assert keys[0] == keys[1] != keys[2]
    assert find_area_file(chosen(path.parent, "Tumor"), "a").key() != keys[0]  # type: ignore[union-attr]
    prints = [annotations_fingerprint(chosen(p.parent), ["a"]) for p in (path, copy, other)]
    assert prints[0] == prints[1] != prints[2]


def test_a_file_that_changes_meanwhile_is_not_used(tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "a.geojson", [SQUARE])
    file = find_area_file(chosen(tmp_path), "a")
    write_geojson(path, [OTHER])
    with pytest.raises(InputError, match="changed while it was used"):
        file.read(BOUNDS)  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_a_mask_image_keeps_what_is_not_black(tmp_path: Path, mode: str) -> None:
    mask = np.zeros((40, 50), np.uint8)  # two level-0 px a pixel
    mask[10:20, 5:15] = 255
    image = Image.fromarray(mask)
    if mode in ("RGBA", "LA"):  # a transparent pixel is outside, whatever its colour
        image = image.convert(mode)
        image.putalpha(Image.fromarray(mask))
    (image if mode in ("RGBA", "LA") else image.convert(mode)).save(tmp_path / "a.png")
    area = area_of(tmp_path / "a.png", Box(1000, 0, 100, 80))
    inside = area.inside(1000 + np.arange(-5, 110) + 0.5, np.arange(80) + 0.5)
    expected = np.zeros((80, 115), bool)
    expected[20:40, 15:35] = True
    assert np.array_equal(inside, expected)
    assert area.extent(Box(1000, 0, 100, 80)) == (1010, 20, 1030, 40)


def test_masks_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for content, line in [
        (np.zeros((40, 50), np.uint8), "the mask is black, so it keeps nothing"),
        (np.ones((50, 40), np.uint8), "a mask of 40 × 50 px has other proportions than the slide of 100 × 80 px"),
        (np.ones((40, 50), np.uint16), "16 bits per sample"),
    ]:
        Image.fromarray(content).save(path)
        with pytest.raises(InputError, match=line):
            area_of(path, BOUNDS)
    Image.fromarray(np.full((40, 50), 255, np.uint8)).save(path)
    with pytest.raises(InputError, match="a mask has no classes, so no 'Tumor'"):
        area_of(path, BOUNDS, keep=["Tumor"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a mask, or damaged"):
        area_of(path, BOUNDS)
    path.write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="it is not a PNG"):
        area_of(path, BOUNDS)
