"""Images of the pages show what the commands make now: screenshots and plots are made again and compared."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.docs.blocks import PAGES, REASONS, ROOT
from tests.docs.folders import write_inputs
from tests.docs.images import COMMANDS, IMAGES, Image, differences, make, named, note_of, plot, save, words
from tests.viewer.browser import CHROMIUM, Browser


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of the pages, where the images of this module leave their runs for each other."""
    folder = tmp_path_factory.mktemp("images") / "inputs"
    write_inputs(folder)
    return folder


def test_every_image_of_a_page_is_listed_with_the_commands_that_make_it() -> None:
    shown = {
        (page.parent / link).resolve().relative_to(ROOT).as_posix()
        for page in PAGES
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    docs = ROOT / "docs"
    files = [path for path in [*docs.iterdir(), *(docs / "viewer").iterdir()] if path.suffix in (".png", ".jpg")]
    assert shown == set(named())
    assert {path.relative_to(ROOT).as_posix() for path in files} <= shown


def test_an_image_that_is_not_made_here_has_a_reason_of_the_list() -> None:
    for image in IMAGES:
        assert bool(image.make) != bool(image.not_made)
        assert not image.not_made or image.not_made.split(":")[0] in REASONS
        assert not image.folder or COMMANDS[image.folder] in image.made_by


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.xdist_group("images")
@pytest.mark.parametrize("image", [image for image in IMAGES if image.make], ids=lambda image: image.name)
def test_an_image_shows_what_its_commands_make_now(image: Image, inputs: Path, tmp_path: Path) -> None:
    if CHROMIUM is None and image.make is not plot:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    new = tmp_path / Path(image.name).name
    make(image, inputs, new)
    found = differences(ROOT / image.name, new)
    assert not found, f"{found}; python -m tests.docs.images {image.name}"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_a_stale_screenshot_is_found(tmp_path: Path) -> None:
    def shot(name: str, html: str) -> Path:
        page = tmp_path / f"{name}.html"
        page.write_text(f"<body style='font: 20px sans-serif'>{html}</body>")
        browser = Browser(400, 300)
        try:
            browser.open(page.as_uri())
            browser.wait("document.readyState === 'complete' && document.body !== null")
            save(browser, tmp_path / f"{name}.jpg")
        finally:
            browser.close()
        return tmp_path / f"{name}.jpg"

    before = shot("before", "<p>Highest patches of s01: 0.25</p><div style='background:#06c;height:90px'></div>")
    with PILImage.open(before) as image:
        assert note_of(image)[1] == {"Highest", "patches", "of"}
    number = shot("number", "<p>Highest patches of s02: 0.26</p><div style='background:#06c;height:90px'></div>")
    assert not differences(before, number)
    word = shot("word", "<p>Highest tiles of s01: 0.25</p><div style='background:#06c;height:90px'></div>")
    assert differences(before, word) == ["words gone: ['patches']", "new words: ['tiles']"]
    colour = shot("colour", "<p>Highest patches of s01: 0.25</p><div style='background:#c60;height:90px'></div>")
    assert "of the image differ" in differences(before, colour)[0]


def test_an_image_of_another_size_or_without_words_is_found(tmp_path: Path) -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    PILImage.fromarray(grey).save(tmp_path / "a.jpg", comment=b"font=9 patches")
    PILImage.fromarray(grey).save(tmp_path / "b.jpg")
    PILImage.fromarray(grey[:32]).save(tmp_path / "c.jpg", comment=b"font=9 patches")
    assert differences(tmp_path / "a.jpg", tmp_path / "b.jpg") == ["words gone: ['patches']"]
    assert differences(tmp_path / "a.jpg", tmp_path / "c.jpg") == ["(64, 64) px, new (64, 32) px"]


def test_names_and_numbers_are_no_words_of_a_page() -> None:
    assert words("s01 · patient P03\nAUC 0.9 re-read") == {"patient", "AUC", "re-read"}


def test_a_failed_command_of_an_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inputs").mkdir()
    monkeypatch.setitem(COMMANDS, "runs/first", "false")
    image = replace(named()["docs/viewer/finetuning.jpg"], made_by="false")
    with pytest.raises(AssertionError, match=r"^false"):
        make(image, tmp_path / "inputs", tmp_path / "a.jpg")
