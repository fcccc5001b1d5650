"""Pages of the repository outside docs/ on the site: contributing, security, changelog, model card."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from generated import write_pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "project"
PAGES = {
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "changelog": "CHANGELOG.md",
    "longvit-tiny-stem": "src/longvit/weights/longvit-tiny-stem/README.md",
}
"""Page of the site → file of the repository."""


def moved(text: str, file: PurePosixPath, folder: PurePosixPath) -> str:
    """The page `file` with its links as they lead from `folder`; both are relative to the root of the repository."""
    pages = {path: f"docs/{FOLDER}/{name}.md" for name, path in PAGES.items()}

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found[1].partition("#")
        if not target or re.match(r"[a-z]+:", target):  # on this page, another host, or an image inside the page
            return found[0]
        path = posixpath.normpath(posixpath.join(str(file.parent), target))
        new = posixpath.relpath(pages.get(path, path), str(folder))
        return f"]({new}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def write(app: Sphinx) -> None:
    root = Path(app.srcdir).parent
    folder = PurePosixPath("docs") / FOLDER
    pages = {name: (PurePosixPath(path), (root / path).read_text(encoding="utf-8")) for name, path in PAGES.items()}
    write_pages(Path(app.srcdir) / FOLDER, {name: moved(text, path, folder) for name, (path, text) in pages.items()})


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    if "/" not in docname:
        source[0] = moved(source[0], PurePosixPath("docs") / f"{docname}.md", PurePosixPath("docs"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
