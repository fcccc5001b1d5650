"""Menu of the site, from the tables of index.md: a heading is a group, a linked page an entry.

So index.md stays plain Markdown on a Git host. A page without a row there is a warning of the build, and so an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx


HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
ROW = re.compile(r"^\| \[[^\]]*\]\(([^)#]+\.md)\)", re.MULTILINE)


def toctrees(index: str) -> str:
    """Directive `toctree` for each heading of the page whose table links pages."""
    parts = HEADING.split(index)[1:]
    groups = ((title, ROW.findall(text)) for title, text in zip(parts[::2], parts[1::2], strict=True))
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n"
        + "\n".join(page.removesuffix(".md") for page in pages)
        + "\n```\n"
        for title, pages in groups
        if pages
    )


def add_menu(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == app.config.root_doc:
        source[0] += toctrees(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", add_menu, priority=900)  # after root_pages has given the links of the site
    return {"parallel_read_safe": True}
