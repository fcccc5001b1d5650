"""The README's Python runs as it is written."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_the_readme_runs_as_written(block: int, tmp_path, monkeypatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(BLOCKS[block], f"README.md, block {block + 1}", "exec"), names)
    if "embedding" in names:
        assert names["canvas"].pixels.shape == (4096, 4096, 3)
        assert names["embedding"].shape == (384,)
        assert names["slide"].size_px == (2220, 2967)
        assert round(names["slide"].mpp.x, 3) == 0.499
    else:
        assert names["out"].shape == names["q"].shape


def test_the_readme_has_its_two_examples() -> None:
    assert len(BLOCKS) == 2
