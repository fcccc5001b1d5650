"""Which slides a command works on: found wherever they lie, each once, in a fixed order, doubt refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvit.data.slide_list import ListedSlide, find_slides
from longvit.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def ids(slides: tuple[ListedSlide, ...]) -> list[str]:
    return [slide.slide_id for slide in slides]


def test_a_folder_is_searched_to_any_depth_and_only_for_slides(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "a.ndpi", "notes.txt", ".hidden.svs", "deep/er/still/c.ome.tiff", "d.h5", "m.mrxs")
    touch(tmp_path, "m/Slidedat.ini", "m/Data0000.dat", "series/1.dcm", "series/2.dcm")
    found = find_slides([tmp_path])
    assert sorted(ids(found)) == ["a", "b", "c", "m", "series"]
    assert found == find_slides([tmp_path])
    assert next(slide for slide in found if slide.slide_id == "series").path == tmp_path / "series"


def test_a_folder_of_dicom_files_is_one_slide(tmp_path: Path) -> None:
    touch(tmp_path, "series/1.dcm", "series/2.dcm")
    assert find_slides([tmp_path / "series"]) == (ListedSlide("series", tmp_path / "series"),)


def test_results_beside_the_slides_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "out/slides/a.png", "out/slides/b.png")
    assert ids(find_slides([tmp_path], leave_out=tmp_path / "out")) == ["a"]


def test_the_same_file_named_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    assert ids(find_slides([tmp_path / "b.svs", tmp_path, f"{tmp_path}/*.svs"])) == ["b", "a"]


def test_two_files_with_one_id_are_refused_with_both_names(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.svs", "y/a.svs")
    with pytest.raises(InputError, match=r"x/a\.svs and .*y/a\.svs: one slide id for two files"):
        find_slides([tmp_path])


def test_dots_in_a_name_are_kept_but_for_the_extension(tmp_path: Path) -> None:
    touch(tmp_path, "TCGA-A1-01Z.b3f1-2.svs")
    assert ids(find_slides([tmp_path])) == ["TCGA-A1-01Z.b3f1-2"]


@pytest.mark.parametrize(
    "table",
    [
        "slide_id,path\na,sub/a.svs\nb,b.svs\n",
        "path\nsub/a.svs\nb.svs\n",
        "wsi,mpp\na.svs,0.25\nb.svs,\n",
        "\ufeffSlide ID;mpp\na;0.25\nb.svs;\n",
    ],
)
def test_a_list_names_slides_by_path_or_id(tmp_path: Path, table: str) -> None:
    touch(tmp_path, "sub/a.svs", "b.svs")
    (tmp_path / "list.csv").write_text(table, encoding="utf-8")
    found = find_slides([tmp_path / "list.csv"])
    assert [(slide.slide_id, slide.path) for slide in found] == [
        ("a", tmp_path / "sub" / "a.svs"),
        ("b", tmp_path / "b.svs"),
    ]
    assert found[0].mpp == (0.25 if "mpp" in table else None)


def test_slides_of_a_list_may_lie_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path / "slides", "a.svs")
    (tmp_path / "list.csv").write_text("slide_id\na\n")
    (slide,) = find_slides([tmp_path / "list.csv"], slides_dir=tmp_path / "slides")
    assert slide.path == tmp_path / "slides" / "a.svs"


def test_a_listed_slide_that_is_missing_stays_on_the_list(tmp_path: Path) -> None:
    """It becomes a row of problems.csv when its turn comes, not the end of the night's run."""
    (tmp_path / "list.csv").write_text("slide_id\ngone\n")
    assert ids(find_slides([tmp_path / "list.csv"])) == ["gone"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name\na\n", "no column slide_id, path or wsi"),
        ("slide_id,mpp\na,fast\n", "line 2"),
        ("slide_id,mpp\na,-1\n", "line 2"),
        ("slide_id\n../../a\n", "is a path"),
        ("", "empty"),
    ],
)
def test_a_list_that_is_none_is_refused_with_the_line(tmp_path: Path, table: str, words: str) -> None:
    (tmp_path / "list.csv").write_text(table)
    with pytest.raises(InputError, match=words) as caught:
        find_slides([tmp_path / "list.csv"])
    assert "list.csv" in str(caught.value)


def test_nothing_found_says_where_it_was_looked_for(tmp_path: Path) -> None:
    for source, words in ((tmp_path, "no slides in it"), (f"{tmp_path}/*.svs", "no file matches")):
        with pytest.raises(InputError, match=words):
            find_slides([source])
    with pytest.raises(InputError, match=r"a\.svs: no such file or folder"):
        find_slides([tmp_path / "a.svs"])
    with pytest.raises(InputError, match="no slides given"):
        find_slides([])
