"""The checks before a release: each finds what it is for, and the page shows what they print."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / ".ci" / "release.py"
FILES = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md", "src/longvit/__init__.py")


def git(folder: Path, *words: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that name the version, committed, with the changelog dated."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    replace(tmp_path / "CHANGELOG.md", r"\A(.*?\n## \S+) \(.*?\)", r"\1 (2026-11-28)")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Release 1.0.0")


def replace(path: Path, pattern: str, text: str) -> None:
    old = path.read_text(encoding="utf-8")
    new = re.sub(pattern, text, old, count=1, flags=re.DOTALL)
    assert new != old or text == r"\1 (2026-11-28)"
    path.write_text(new, encoding="utf-8")


def check(folder: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_the_page_shows_what_a_dry_run_prints(checkout: Path) -> None:
    code, lines = check(checkout)
    assert code == 0
    page = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    assert "\n".join(f"   {line}" for line in lines) in page


def change(name: str, pattern: str, text: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        replace(folder / name, pattern, text)
        commit(folder)

    return changed


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "new.py").touch(), "tree: 1 changed or new files, first new.py"),
        (change("CITATION.cff", r"\nversion: \S+", "\nversion: 0.9.0"), "version: CITATION.cff has 0.9.0"),
        (change("src/longvit/__init__.py", '__version__ = "', '__version__ = "9'), "version: src/longvit/__init__.py"),
        (change("CHANGELOG.md", r"\n## \S+", "\n## 0.9.0"), "version: CHANGELOG.md has 0.9.0"),
        (change("pyproject.toml", r'\nversion = "\S+"', '\nversion = "1.0"'), "version: pyproject.toml: 1.0 is not"),
        (change("CHANGELOG.md", r"\(2026-11-28\)", "(unreleased)"), '"1.0.0 (unreleased)" has no date'),
        (change("CHANGELOG.md", r"\(2026-11-28\)", "(2999-01-01)"), "is in the future"),
        (change("CHANGELOG.md", r"\(2026-11-26, not published\)", "(unreleased)"), "is below a newer section"),
        (lambda folder: git(folder, "tag", "v1.0.0"), "tag: v1.0.0 exists"),
    ],
)
def test_what_is_to_be_done_first_is_one_line(checkout: Path, damage: Callable[[Path], None], line: str) -> None:
    damage(checkout)
    code, lines = check(checkout)
    assert code == 1
    assert line in "\n".join(found for found in lines if found.startswith("fail"))
