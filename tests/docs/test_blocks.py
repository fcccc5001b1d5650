"""Every shell and Python block of every page runs as it is written, page by page in a folder of its own.

A block that cannot run says why in a comment that a rendered page does not show; `python -m tests.docs.blocks` counts.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from tests.docs.blocks import (
    FENCE,
    LANGUAGES,
    NOTEBOOK,
    PAGES,
    REASONS,
    ROOT,
    Block,
    blocks,
    differences,
    escaped,
    needs,
    summary,
)
from tests.docs.folders import NEEDS, RUN, add_need, locked, make_bin, write_inputs

T = TypeVar("T")
ALL = [block for page in PAGES for block in blocks(page)]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, and what pages need, made once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    store = (base.parent if "popen-" in base.name else base) / "docs-store"
    with locked(store.with_suffix(".lock")):
        if not store.exists():
            write_inputs(store.with_name("docs-store-new"))
            store.with_name("docs-store-new").rename(store)
    return store


@pytest.fixture
def folder(store: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "page"
    inputs = ("examples", "slides", "annotations", "pathobench")
    folder.mkdir()
    for entry in store.iterdir():
        if entry.name in inputs or entry.is_symlink() or entry.is_file():
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, folder / entry.name)
            else:
                shutil.copy2(entry, folder / entry.name, follow_symlinks=False)
    return folder


def run(block: Block, folder: Path, bin_dir: Path) -> None:
    done = RUN[block.language](block.code, folder, bin_dir)
    assert done.returncode == block.exit_code, f"{block.name}: exit code {done.returncode}\n{block.code}\n{done.stdout}"
    if block.output is not None:
        missing = differences(block.output, done.stdout, block.tolerance)
        assert not missing, f"{block.name}: the page shows {missing}, but the output is\n{done.stdout}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(not block.not_run for block in blocks(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_blocks_of_a_page_run_as_written(page: Path, folder: Path, store: Path, tmp_path: Path) -> None:
    bin_dir = make_bin(tmp_path / "bin")
    for name in needs(page):
        add_need(name, folder, store, bin_dir)
    for block in blocks(page):
        if not block.not_run:
            run(block, folder, bin_dir)


def test_a_block_that_is_not_run_has_a_reason_of_the_list() -> None:
    wrong = [block.name for block in ALL if block.not_run and not named(block.not_run)]
    assert not wrong


def named(reason: str) -> bool:
    """True if the reason begins with a listed word, says why, and names only tests that exist."""
    word, _, why = reason.partition(": ")
    return word in REASONS and bool(why) and (word != "elsewhere" or (ROOT / why.split()[0]).exists())


def test_most_blocks_run() -> None:
    alone = [block for block in ALL if block.not_run != NOTEBOOK]  # a notebook's cells run together
    assert sum(not block.not_run for block in alone) >= 0.65 * len(alone)


@pytest.mark.parametrize("block", [block for block in ALL if block.not_run], ids=lambda block: block.name)
def test_a_block_that_is_not_run_is_still_the_language_that_it_says(block: Block) -> None:
    if block.language == "python":
        compile(block.code, block.name, "exec")
    else:
        done = subprocess.run(["bash", "-n"], input=block.code, text=True, capture_output=True, check=False)
        assert not done.stderr, f"{block.name}: {done.stderr}"


def test_no_command_of_a_page_escapes_in_a_block_that_is_not_a_shell_block(tmp_path: Path) -> None:
    assert not [place for page in PAGES for place in escaped(page)]
    page = ROOT / "docs" / "none.md"
    assert page not in PAGES
    copy = tmp_path / page.name
    copy.write_text("```text\nlongvit info s.svs\n```\n\n```sh\n$ ls\n```\n\n```text\n3 slides\n```\n")
    assert len(with_root(escaped, copy)) == 1
    languages = {fence["language"] for page in PAGES for fence in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert languages <= {*LANGUAGES, "text", "groovy"}


def test_every_page_of_the_repository_is_read() -> None:
    ours = {path for path in ROOT.rglob("*.md") if not any(part.startswith((".", "_")) for part in path.parts)}
    made = {ROOT / "docs" / folder for folder in ("api", "commands", "project")}
    ours = {path for path in ours if path.parent not in made and "demo" not in path.relative_to(ROOT).parts[:1]}
    assert ours <= set(PAGES)


def test_the_count_names_what_runs_and_why_the_rest_does_not() -> None:
    reasons = ["", "", "GPU: eight", "elsewhere: tests/docs/blocks.py", "GPU: two"]
    assert summary("blocks", reasons) == [
        "blocks: 3 of 5 run (1 of them by a test of their own), 2 not runnable here",
        "    2 GPU: it needs GPUs",
    ]


def test_what_a_page_needs_can_be_made() -> None:
    assert not [(page.name, name) for page in PAGES for name in needs(page) if name not in NEEDS]


def test_a_block_that_fails_or_prints_something_else_is_found(tmp_path: Path) -> None:
    bin_dir = make_bin(tmp_path / "bin")
    page = ROOT / "docs" / "none.md"
    block = Block(page.name, 1, "bash", "echo 3 slides\n", output="3 slides\n")
    run(block, tmp_path, bin_dir)
    for wrong in ({"code": "echo 4 slides"}, {"code": "echo 3 slides; false"}, {"code": "false; echo 3 slides"}):
        with pytest.raises(AssertionError, match=r"none\.md:1"):
            run(Block(**{**vars(block), **wrong}), tmp_path, bin_dir)
    with pytest.raises(AssertionError, match="exit code 1"):
        run(Block(page.name, 1, "python", "1 / 0\n"), tmp_path, bin_dir)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("AUC 0.81, 20 slides", "first\nAUC 0.811, 20 slides\nlast", True),
        ("AUC 0.81, 20 slides", "AUC 0.83, 20 slides", False),
        ("AUC 0.81, 20 slides", "AUC 0.81, 20 tiles", False),
        ("1,024 px … done", "1,024 px of s.tif done", True),
        ("a\nb", "b\na", False),
        ("a\n…\nb", "a\nx\nb", True),
    ],
)
def test_outputs_are_compared_line_by_line_with_numbers_by_tolerance(shown: str, printed: str, same: bool) -> None:
    assert (differences(shown, printed, 0.01) == []) is same


def test_marks_are_read_and_stay_out_of_the_rendered_page(tmp_path: Path) -> None:
    page = ROOT / "docs" / "first-hour.md"
    text = (
        "<!-- not run: GPU: it needs\n8 -->\n```bash\nlongvit\n```\n\n```bash\nls\n```\n\n"
        "<!-- output, numbers within 20 % -->\n```text\na\n```\n"
    )
    copy = tmp_path / page.name
    copy.write_text(text + "\n   ```bash\n   false\n   ```\n   <!-- exit code 1 -->\n")
    first, second, third = with_root(blocks, copy)
    assert (first.not_run, first.output) == ("GPU: it needs 8", None)
    assert (second.not_run, second.output, second.tolerance) == ("", "a\n", 0.2)
    assert (third.code, third.exit_code) == ("false\n", 1)


def with_root(function: Callable[[Path], list[T]], path: Path) -> list[T]:
    """The function of a page outside the repository."""
    import tests.docs.blocks as module

    root, module.ROOT = module.ROOT, path.parent
    try:
        return function(path)
    finally:
        module.ROOT = root
