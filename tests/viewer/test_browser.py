"""The page in a real browser: no pixel of a heat map is misplaced, keys do everything, no other host is asked."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.slides.slide_files import write_mrxs
from tests.viewer.browser import CHROMIUM, SETTLED, Browser
from tests.viewer.runs import finetuned
from tests.viewer.test_preview import gradient

from longvit.slides.placement import Box, Placement
from longvit.slides.reader import open_slide
from longvit.viewer.heat_map import Layer, PatchHeat
from longvit.viewer.items import HeatRequest, ViewItem, ViewItems, ViewPrediction
from longvit.viewer.open_slides import OpenedSlide
from longvit.viewer.server import ViewServer
from longvit.viewer.sources import load_items

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]
PATCHES = 6
EDGE_PX = 1.0
"""Distance from the edge of a patch, in screen px, within which a pixel may have either colour."""
SIDE_PX = PATCHES * 32


@pytest.fixture
def browser() -> Iterator[Browser]:
    page = Browser(900, 620)
    yield page
    page.close()


def grey_slide(path: Path, width_px: int, height_px: int) -> Path:
    pixels = np.full((height_px, width_px, 3), 128, np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), metadata=None)
    return path


def slide_of(name: str, folder: Path) -> tuple[Path, str]:
    """Slide file of one of four placements, and the fit of its canvas."""
    match name:
        case "stretch":
            return grey_slide(folder / "a.tif", 3000, 3000), "stretch"
        case "non-square":
            return grey_slide(folder / "a.tif", 4100, 1300), "stretch"
        case "pad":
            return grey_slide(folder / "a.tif", 1500, 3700), "pad"
        case _:
            pixels = np.full((1024, 1280, 3), 128, np.uint8)
            skip = tuple((column, row) for column in range(20) for row in range(16) if column < 3 or row < 2)
            return write_mrxs(folder / "a.mrxs", pixels, skip=skip), "stretch"


@pytest.mark.parametrize("name", ["stretch", "non-square", "pad", "offset"])
def test_no_pixel_of_the_heat_map_is_misplaced(name: str, tmp_path: Path, browser: Browser) -> None:
    path, fit = slide_of(name, tmp_path)
    with open_slide(path) as slide:
        bounds = slide.bounds
    assert name != "offset" or (bounds.x > 0 and bounds.y > 0)
    checkers = (np.indices((PATCHES, PATCHES)).sum(0) % 2 * 2 - 1).astype(np.float32)  # red and blue in turn
    placement = Placement(bounds, SIDE_PX, fit)  # type: ignore[arg-type]
    heat = PatchHeat(placement, checkers[None], (Layer("a", "checkers", True, 1.0),))
    prediction = ViewPrediction(heat=HeatRequest("key", lambda _: heat))
    server = ViewServer(ViewItems("slides", name, [ViewItem("a", path, predictions=(prediction,))]))
    server.start()
    try:
        browser.open(server.url)
        browser.wait(SETTLED)
        for zoom, x, y in ((1.0, 0.5, 0.5), (5.0, 0.31, 0.42), (40.0, 0.52, 0.49)):
            browser.evaluate(
                "(() => { const v = longvit.viewer(), b = v.world.getItemAt(0).getBounds(), p = v.viewport;"
                "const opacity = document.getElementById('opacity'); opacity.value = 100; opacity.oninput();"
                f"p.zoomTo(p.getHomeZoom() * {zoom}, null, true);"
                f"p.panTo(new OpenSeadragon.Point(b.x + b.width * {x}, b.y + b.height * {y}), true); }})()"
            )
            browser.evaluate("new Promise((done) => setTimeout(done, 400))")
            browser.wait(SETTLED)
            wrong, checked = misplaced(browser, placement, checkers)
            assert checked > 20_000
            assert wrong == 0, f"{wrong} of {checked} pixels at zoom {zoom}"
        assert not browser.errors
        assert all(url.startswith(("http://127.0.0.1", "data:")) for url in browser.requests)
    finally:
        server.close()


def test_a_blurred_preview_lies_on_the_slide_until_the_overview_is_read(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gradient(tmp_path / "a.tif", 4500, 2400)
    may_read, read = threading.Event(), OpenedSlide._made_overview

    def waiting(self: OpenedSlide) -> dict[tuple[int, int, int], bytes]:
        may_read.wait(60)
        return read(self)

    monkeypatch.setattr(OpenedSlide, "_made_overview", waiting)
    server = ViewServer(ViewItems("slides", "made", [ViewItem("a", path)]))
    server.start()
    try:
        browser.open(server.url)
        browser.wait("Boolean(document.querySelector('.preview')?.naturalWidth)")
        browser.evaluate("new Promise((done) => setTimeout(done, 900))")  # the first zoom
        shown, expected = browser.evaluate(
            "(() => { const v = longvit.viewer(), i = v.world.getItemAt(0), r = v.container.getBoundingClientRect(),"
            "p = document.querySelector('.preview').getBoundingClientRect(),"
            "at = (x, y) => i.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y)),"
            "a = at(0, 0), b = at(4500, 2400);"
            "return [[p.left, p.top, p.right, p.bottom], [r.left + a.x, r.top + a.y, r.left + b.x, r.top + b.y]]; })()"
        )
        np.testing.assert_allclose(shown, expected, atol=1)
        left, top, right, bottom = (int(side) for side in shown)
        blurred = browser.image()[top:bottom, left:right].astype(float)
        assert not browser.evaluate(SETTLED)
        may_read.set()
        browser.wait(SETTLED)
        browser.wait("!document.querySelector('.preview')")
        sharp = browser.image()[top:bottom, left:right].astype(float)
        assert np.ptp(sharp[..., 0]) > 200
        assert np.abs(blurred - sharp)[8:-8, 8:-8].mean() < 6
        assert not browser.errors
    finally:
        may_read.set()
        server.close()


def misplaced(browser: Browser, placement: Placement, checkers: np.ndarray) -> tuple[int, int]:
    """Pixels of the stage with another patch's colour, and the number of pixels checked.

    A pixel is checked where all points within `EDGE_PX` are in one patch: its colour is then certain.
    """
    left, top, width, height, x0, y0, scale = browser.evaluate(
        "(() => { const v = longvit.viewer(), r = v.container.getBoundingClientRect(), i = v.world.getItemAt(0),"
        "p = i.viewerElementToImageCoordinates(new OpenSeadragon.Point(0, 0)),"
        "q = i.viewerElementToImageCoordinates(new OpenSeadragon.Point(100, 0));"
        "return [r.left, r.top, r.width, r.height, p.x, p.y, (q.x - p.x) / 100]; })()"
    )
    shown = browser.image()[int(top) : int(top + height), int(left) : int(left + width)].astype(int)
    corners = []
    for dx in (-1, 1):
        for dy in (-1, 1):
            x = x0 + (np.arange(shown.shape[1]) + int(left) - left + 0.5 + EDGE_PX * dx) * scale
            y = y0 + (np.arange(shown.shape[0]) + int(top) - top + 0.5 + EDGE_PX * dy) * scale
            corners.append(values_at(placement, checkers, x + placement.bounds.x, y + placement.bounds.y))
    is_certain = np.isfinite(corners[0])
    for other in corners[1:]:
        is_certain &= other == corners[0]
    is_certain[:190, -60:] = False  # the buttons
    is_certain[-60:, :200] = False  # the scale bar
    is_certain[-2:] = is_certain[:, -2:] = False  # the stage ends within a pixel
    redness = shown[..., 0] - shown[..., 2]
    return int((is_certain & (np.sign(redness) != corners[0])).sum()), int(is_certain.sum())


def values_at(placement: Placement, grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Value at level-0 positions from the fit's definition; NaN outside the slide."""
    b: Box = placement.bounds
    side = placement.side_px
    if placement.fit == "stretch":
        columns, rows = (x - b.x) * side / b.width, (y - b.y) * side / b.height
    else:
        scale = side / max(b.width, b.height)
        wide, high = round(b.width * scale), round(b.height * scale)
        columns = (side - wide) // 2 + (x - b.x) * wide / b.width
        rows = (side - high) // 2 + (y - b.y) * high / b.height
    step = side / len(grid)
    found = grid[
        (rows // step).astype(int).clip(0, len(grid) - 1)[:, None],
        (columns // step).astype(int).clip(0, len(grid) - 1)[None],
    ].astype(float)
    found[(y < b.y) | (y >= b.bottom)] = np.nan
    found[:, (x < b.x) | (x >= b.right)] = np.nan
    return found


def test_a_reader_works_with_keys_alone_and_the_notes_are_in_the_runs_folder(tmp_path: Path, browser: Browser) -> None:
    run = finetuned(tmp_path)
    server = ViewServer(load_items([run], slides_dir=tmp_path / "slides", device="cpu"))
    server.start()
    try:
        browser.open(server.url)
        browser.wait(SETTLED)
        assert browser.evaluate("document.getElementById('slide-id').textContent") == "s2"  # the largest error
        browser.key("d")
        browser.wait("document.getElementById('saved').textContent === 'saved'")
        browser.key("j")
        browser.wait("document.getElementById('slide-id').textContent !== 's2'")
        browser.wait(SETTLED)
        browser.key("k")
        browser.wait("document.getElementById('slide-id').textContent === 's2'")
        browser.wait(SETTLED)
        browser.wait("longvit.viewer().world.getItemCount() === 2")  # the heat map, and with it the patches
        browser.key("t")
        browser.wait("document.querySelector('.mark') !== null")
        browser.key("0")
        browser.key("h")
        browser.wait("longvit.viewer().world.getItemAt(1).opacity === 0")
        browser.key(".")
        browser.wait("document.getElementById('threshold').value === '5'")
        browser.key("?")
        browser.wait("document.getElementById('help').open")
        with (run / "review.csv").open(newline="") as file:
            assert [(row["slide_id"], row["verdict"]) for row in csv.DictReader(file)] == [("s2", "disagree")]
        assert not browser.errors
    finally:
        server.close()


def test_nothing_is_wider_than_a_phone_and_the_list_opens(tmp_path: Path) -> None:
    run = finetuned(tmp_path)
    server = ViewServer(load_items([run], slides_dir=tmp_path / "slides", device="cpu"))
    server.start()
    browser = Browser(390, 844, touch=True)
    try:
        browser.open(server.url)
        browser.wait(SETTLED)
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        browser.evaluate("document.getElementById('open-list').click()")
        assert browser.evaluate("document.getElementById('list').offsetWidth") == 390
        browser.evaluate("document.querySelector('#rows li:last-child button').click()")
        assert browser.evaluate("document.getElementById('list').offsetWidth") == 0
        browser.wait(SETTLED)
    finally:
        browser.close()
        server.close()


def test_a_name_with_markup_is_text(tmp_path: Path, browser: Browser) -> None:
    name = "<img src=x onerror=alert(1)>"
    with open_slide(grey_slide(tmp_path / "a.tif", 300, 300)) as slide:
        item = ViewItem(name, slide.path, label=name, case_id=name, site="</script><script>alert(1)</script>")
    server = ViewServer(ViewItems("slides", name, [item, ViewItem("b", tmp_path / "none.svs")], tmp_path, (name,)))
    server.start()
    try:
        browser.open(server.url)
        browser.wait(SETTLED)
        assert browser.evaluate("document.getElementById('slide-id').textContent") == name
        assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0
        browser.key("j")
        browser.wait("!document.getElementById('reason').hidden")
        assert not [text for text in browser.errors if "alert" in text]
    finally:
        server.close()
