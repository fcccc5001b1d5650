"""Check of the built documentation site: `python .ci/check_site.py docs/_build`; exit code 1 with a line per problem.

Nothing may be loaded from another host, and every image is there. Every link inside leads to a page and a heading that
exist. Every page of docs/ is at most two links from the first one. The search index has the words of the pages, so that
search works from the folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
NOT_LOADED = {"canonical", "index", "search", "next", "prev", "author", "copyright"}
WORDS = ("heartbeat", "dilat", "canva", "quadrat")
"""Stems of words that the pages have."""


class Page(HTMLParser):
    """Links, loaded addresses and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if (name := LOADS.get(tag)) and values.get(name) and values.get("rel") not in NOT_LOADED:
            self.loaded.add(values[name])


def problems(site: Path) -> Iterator[str]:
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name} loads {url}" for url in sorted(page.loaded) if re.match(r"(https?:)?//", url))
        for file in sorted(page.loaded):
            if not re.match(r"[a-z]+:|//", file) and (reason := dead(path, file.split("?")[0], pages)):
                yield f"{name} loads {file}: {reason}"
        for link in sorted(page.links):
            if not re.match(r"[a-z]+:|//", link) and (reason := dead(path, link, pages)):
                yield f"{name} links {link}: {reason}"
    for style in [*site.rglob("*.css"), *site.rglob("*.js")]:
        for url in re.findall(r"@import\s+[\"']?https?://\S+|url\([\"']?https?://[^)]*\)", style.read_text("utf-8")):
            yield f"{style.relative_to(site)} loads {url}"
    near = clicks(site / "index.html", pages, most=2)
    for source in sorted(site.parent.glob("*.md")):
        if site / f"{source.stem}.html" not in near:
            yield f"{source.name} is more than two links from the first page"
    index = (site / "searchindex.js").read_text("utf-8")
    yield from (f"the search index lacks {word}" for word in WORDS if word not in index)


def dead(path: Path, link: str, pages: dict[Path, Page]) -> str:
    """Reason why a link leads nowhere, or empty."""
    target, _, anchor = unquote(link).partition("#")
    file = (path.parent / target).resolve() if target else path
    if not file.exists():
        return "no such file"
    return "no such heading" if anchor and file in pages and anchor not in pages[file].anchors else ""


def clicks(first: Path, pages: dict[Path, Page], most: int) -> set[Path]:
    """Pages that `most` links reach, the menu included."""
    reached, new = {first}, {first}
    for _ in range(most):
        links = {(path.parent / unquote(link.split("#")[0])).resolve() for path in new for link in pages[path].links}
        new = (links & pages.keys()) - reached
        reached |= new
    return reached


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/_build").resolve()
    found = list(problems(site))
    for line in found:
        print(line)
    count = len(list(site.rglob("*.html")))
    print(f"{site.name}: {count} pages, {len(found)} problems: hosts, links, distance from the first page, search")
    return 1 if found or count < 30 else 0


if __name__ == "__main__":
    sys.exit(main())
