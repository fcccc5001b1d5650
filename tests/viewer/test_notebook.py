"""The viewer and a slide in a notebook; the command's own lines."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import EXAMPLE_SLIDE
from tests.small_slides import write_slide

import longvit
from longvit.cli import main


def test_a_notebook_gets_a_frame_that_may_be_shown_inside_its_page(tmp_path: Path) -> None:
    shown = longvit.view(write_slide(tmp_path / "a.tif"), height_px=400)
    try:
        frame = shown._repr_html_()
        assert f'<iframe src="{shown.url}"' in frame
        assert 'height="400"' in frame
        with urllib.request.urlopen(shown.url) as reply:
            assert "frame-ancestors" not in reply.headers["Content-Security-Policy"]
    finally:
        shown.close()


def test_a_slide_is_a_thumbnail_with_size_and_resolution_in_its_proportions() -> None:
    with longvit.open_slide(EXAMPLE_SLIDE) as slide:
        html = slide._repr_html_()
    assert "2,220 × 2,967 px, 0.499 µm/px" in html
    data = re.search(r"base64,([^\"]+)", html)
    assert data
    width, height = Image.open(io.BytesIO(base64.b64decode(data[1]))).size
    assert max(width, height) == 320
    assert width / height == pytest.approx(2220 / 2967, rel=0.01)


def test_a_slide_with_markup_in_its_name_or_too_small_is_text(tmp_path: Path) -> None:
    with longvit.open_slide(write_slide(tmp_path / "<b>x.tif", size_px=(20, 20))) as slide:
        html = slide._repr_html_()
    assert "smaller than one patch" in html
    assert "<b>" not in html


def test_the_command_prints_an_address_that_answers_and_ends_on_an_interrupt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longvit", "view", str(write_slide(tmp_path / "a.tif")), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}list") as reply:
            assert b'"a"' in reply.read()
        process.send_signal(2)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "1 slide." in errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.svs"], "none.svs"),
        (["a.tif", "--port", "70000"], "--port 70000"),
        (["a.tif", "--host", "203.0.113.7"], "cannot listen"),
        (["a.tif", "--slides-dir", "none"], "no such folder"),
        (["a.tif", "--model", "none"], "none"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "a.tif")
    assert main(["view", *arguments, "--no-browser"]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
