"""`longvit tiles` and `longvit features`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cyclopts import App
from tests.conftest import EXAMPLE_SLIDE
from tests.slides.slide_files import write_svs
from tests.small_slides import write_model

from longvit.cli.features import features
from longvit.cli.tiles import tiles
from longvit.data.bags import find_bags, read_bag
from longvit.errors import InputError

Captured = pytest.CaptureFixture[str]
app = App(name="longvit", result_action="return_value", help_format="markdown")
app.command(tiles)
app.command(features)


def longvit(*words: str | Path) -> int:
    code: int = app([str(word) for word in words], exit_on_error=False, print_error=False)
    return code


@pytest.mark.parametrize("command", ["tiles", "features"])
def test_help_shows_examples(command: str, capsys: Captured) -> None:
    app([command, "--help"])
    text = capsys.readouterr().out
    assert f"longvit {command} slides/ --out job" in text
    assert "--tile-mpp" in text


def test_a_real_slide_becomes_tiles_and_then_a_bag(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "job"
    assert longvit("tiles", EXAMPLE_SLIDE, "--out", out, "--tile-px", "128") == 0
    stderr = capsys.readouterr().err
    assert "tiles on 1 slides" in stderr
    assert f"1 done. Tiles: {out / '20x_128px_0px_overlap' / 'tiles.csv'}" in stderr
    words = ("features", EXAMPLE_SLIDE, "--out", out, "--tile-px", "128", "--threads", "1")
    assert longvit(*words) == 0
    bags = find_bags(out, ["CMU-1-Small-Region.svs"])
    bag = read_bag(bags.paths["CMU-1-Small-Region.svs"])
    assert bag.features.shape[1] == 137
    assert f"{len(bag)} tiles on 1 slides" in stderr
    # The tiles cover tissue, which is stained.
    assert np.median(bag.features[:, 0]) > 0.05
    assert longvit(*words) == 0
    assert "1 finished before" in capsys.readouterr().err


def test_a_slide_without_tissue_is_named_and_does_not_fail(tmp_path: Path, capsys: Captured) -> None:
    write_svs(tmp_path / "blank.svs", [np.full((700, 700, 3), 240, np.uint8)])
    assert longvit("tiles", tmp_path / "blank.svs", "--out", tmp_path / "job") == 0
    assert "no tiles on 1: blank" in capsys.readouterr().err


def test_a_model_on_tiles_in_clams_layout(tmp_path: Path, capsys: Captured) -> None:
    model = write_model(tmp_path / "model")
    words = ("--encoder", f"longvit:{model}", "--layout", "clam", "--tile-mpp", "1", "--device", "cpu")
    assert longvit("features", EXAMPLE_SLIDE, "--out", tmp_path / "job", *words) == 0
    assert f"encoder longvit:{model} on CPU" in capsys.readouterr().err
    folder = tmp_path / "job" / "10x_256px_0px_overlap" / "features_longvit-model"
    assert read_bag(folder / "h5_files" / "CMU-1-Small-Region.h5").features.shape[1] == 32


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("tiles", "--tile-mpp", "0"), "--tile-mpp 0: more than 0"),
        (("tiles", "--min-piece-um2", "-1"), "--min-piece-um2 -1: at least 0"),
        (("features", "--overlap-px", "300"), "--overlap-px 300: from 0 to 255"),
        (("features", "--encoder", "resnet"), "--encoder resnet: take one of stain-texture"),
        (("features", "--workers", "0"), "--workers 0: at least 1"),
    ],
)
def test_an_invalid_number_is_one_line_before_any_slide(words: tuple[str, ...], line: str, tmp_path: Path) -> None:
    command, *options = words
    with pytest.raises(InputError, match=line):
        longvit(command, EXAMPLE_SLIDE, "--out", tmp_path / "job", *options)
    assert not (tmp_path / "job").exists()
