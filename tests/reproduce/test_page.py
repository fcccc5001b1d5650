"""The cost page states what the command prints, and every cell can be planned with the index of the archive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.reproduce.checkouts import hipt_checkout, mcat_checkout

from longvit.cli import main
from longvit.reproduce.cells import cells

pytest.importorskip("duckdb", reason="needs the extra public")
pytest.importorskip("idc_index_data", reason="needs the extra public")

PAGE = ROOT / "docs" / "reproduce.md"


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clones")
    return ["--protocol", str(hipt_checkout(folder / "HIPT")), "--protocol", str(mcat_checkout(folder / "MCAT"))]


@pytest.mark.slow
@pytest.mark.shared
def test_costs_of_the_page_are_those_of_the_command(clones: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list", *clones]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("table3/", "table4/"))]
    block = re.search(r"```text\n(cell .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    assert block[1].splitlines() == printed


@pytest.mark.slow
@pytest.mark.shared
def test_every_cell_has_a_plan_with_the_real_index(clones: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for cell in cells():
        assert main(["reproduce", cell.name, *clones, "--dry-run"]) == 0
        plan = capsys.readouterr().out
        assert f"{cell.name}: {cell.task}" in plan
        if not cell.reads_slides:
            assert "download" not in plan
            continue
        found, listed = re.search(r"^slides +([\d,]+) of ([\d,]+) in IDC", plan, re.MULTILINE).groups()  # type: ignore[union-attr]
        assert int(found.replace(",", "")) >= int(listed.replace(",", "")) - 1
        assert re.search(r"^download +[\d,.]+ GiB$", plan, re.MULTILINE)
        assert ("hours at least" in plan) == (cell.system is None)


def test_page_names_the_commits_of_the_protocols() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for repository in {cell.protocol.repository for cell in cells()}:
        assert f"git clone {repository.url}" in text
        assert repository.commit[:7] in text


def test_page_is_found_from_the_others() -> None:
    assert "reproduce.md" in Path(ROOT / "docs" / "compare-systems.md").read_text(encoding="utf-8")
