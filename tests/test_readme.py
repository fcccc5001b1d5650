"""The Python of README.md and docs/python.md runs as it is written."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT

PAGES = ("README.md", "docs/python.md")
BLOCKS = [
    (page, number, code)
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL), 1
    )
]


@pytest.mark.parametrize(("page", "number", "code"), BLOCKS, ids=[f"{page}:{number}" for page, number, _ in BLOCKS])
def test_the_python_of_the_pages_runs_as_written(page: str, number: int, code: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, f"{page}, block {number}", "exec"), names)
    if "canvas" in names:
        assert names["canvas"].pixels.shape == (4096, 4096, 3)
        assert names["slide"].size_px == (2220, 2967)
        assert round(names["slide"].mpp.x, 3) == 0.499
    if "embedding" in names:
        assert names["embedding"].shape == (384,)
    if "q" in names:
        assert names["out"].shape == names["q"].shape


def test_the_pages_have_their_examples() -> None:
    assert [page for page, _, code in BLOCKS if "longvit.open_slide" in code][:1] == ["README.md"]
    assert any("dilated_attention" in code for page, _, code in BLOCKS if page == "docs/python.md")
