"""Checks before a release: `make release-check`. It changes nothing and publishes nothing.

Each line is `ok` or `fail`. With `--dry-run` the slow checks are listed, not run. The commands that make the release
are printed at the end, for a person to run. Exit code: 0 ready; 1 something is to be done first.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

SLOW = {
    "interface": "python tests/stability/interface.py",
    "wheel": "make wheel",
}
"""Check → the command that has to end with exit code 0."""
RELEASE = (
    'git tag -a v{version} -m "longvit {version}"',
    "git push --follow-tags",
    "twine upload dist/longvit-{version}*",
)


class NotReadyError(Exception):
    """Work to be done before the release."""


def version_of(root: Path) -> str:
    return str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def tree(root: Path) -> str:
    """No change that is not committed."""
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        raise NotReadyError(f"{len(changed)} changed or new files, first {changed[0][3:]}: commit or remove them")
    return f"commit {git(root, 'log', '-1', '--format=%s')!r}"


def versions(root: Path) -> str:
    """One version everywhere: `x.y.z`, as semantic versioning has it."""
    version = version_of(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise NotReadyError(f"pyproject.toml: {version} is not x.y.z")
    places = {
        "src/longvit/__init__.py": r'^__version__ = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
        "CHANGELOG.md": r"^## (\S+)",
    }
    for name, pattern in places.items():
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.M)
        if found is None or found[1] != version:
            raise NotReadyError(f"{name} has {found and found[1]}, pyproject.toml {version}")
    return f"{version} in pyproject.toml, {', '.join(places)}"


def changelog(root: Path) -> str:
    """The newest section has a date that is not in the future, and no other one is open."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading, *older = re.findall(r"^## (.*)$", text, re.M)
    found = re.fullmatch(r"\S+ \((\d{4}-\d{2}-\d{2})\)", heading)
    if found is None:
        raise NotReadyError(f'CHANGELOG.md: "{heading}" has no date; write {heading.split()[0]} (YYYY-MM-DD)')
    if date.fromisoformat(found[1]) > date.today():
        raise NotReadyError(f'CHANGELOG.md: "{heading}" is in the future')
    if still_open := [line for line in older if "unreleased" in line.lower()]:
        raise NotReadyError(f'CHANGELOG.md: "{still_open[0]}" is below a newer section')
    return heading


def tag(root: Path) -> str:
    """The name of the tag is free here; the push finds one that is elsewhere."""
    name = f"v{version_of(root)}"
    if git(root, "tag", "--list", name):
        raise NotReadyError(f"{name} exists: git show {name}")
    return f"{name} is free"


QUICK: dict[str, Callable[[Path], str]] = {"tree": tree, "version": versions, "changelog": changelog, "tag": tag}


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.rstrip()


def report(root: Path, *, dry_run: bool) -> Iterator[tuple[bool, str]]:
    """(whether it is well, line) of every check, then of the commands that follow."""
    for name, check in QUICK.items():
        try:
            yield True, f"{'ok':6}{name}: {check(root)}"
        except NotReadyError as error:
            yield False, f"{'fail':6}{name}: {error}"
    for name, command in SLOW.items():
        if dry_run:
            yield True, f"{'skip':6}{name}: {command}"
        else:
            words = shlex.split(command)
            words[0] = sys.executable if words[0] == "python" else words[0]
            code = subprocess.run(words, cwd=root, check=False).returncode
            yield code == 0, f"{'ok' if code == 0 else 'fail':6}{name}: {command}"
    for command in RELEASE:
        yield True, f"{'next':6}{command.format(version=version_of(root))}"


def main() -> int:
    ready = True
    for well, line in report(Path.cwd(), dry_run="--dry-run" in sys.argv):
        ready &= well
        print(line, flush=True)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
