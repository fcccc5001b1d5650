"""Reference of the commands: a page for each, from the command line's own help, so that the two cannot differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App
from cyclopts.docs.markdown import generate_markdown_docs
from generated import write_pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "commands"
PAGE = "commands"


def command_names(app: App) -> list[str]:
    """Names of the commands, in the order of `longvit --help`."""
    listed = re.findall(r"^\* \[`([^`]+)`\]", generate_markdown_docs(app, recursive=False), re.MULTILINE)
    return [name for name in listed if not name.startswith("-")]


def markdown(app: App, name: str) -> str:
    """Page of one command: `<NAME>` in a sentence stays text, lines of one option are joined."""
    text = generate_markdown_docs(app, commands_filter=[name], no_root_title=True, generate_toc=False)
    text = text.replace(" -m sphinx", "")  # the name under which the build runs
    text = re.sub(r"^# ", "## ", text, flags=re.MULTILINE)  # subcommands
    text = re.sub(r"\n {2,}(?=\S)", " ", text)
    parts = re.split(r"(```.*?```|`[^`\n]+`)", text, flags=re.DOTALL)
    parts[::2] = [part.replace("<", "\\<") for part in parts[::2]]
    return f"# longvit {name}\n\n{''.join(parts).strip()}\n"


def write(app: Sphinx) -> None:
    from longvit.cli.commands import app as longvit

    write_pages(Path(app.srcdir) / FOLDER, {name: markdown(longvit, name) for name in command_names(longvit)})


def add_menu(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == PAGE:
        pages = sorted(path.stem for path in (Path(app.srcdir) / FOLDER).glob("*.md"))
        lines = "\n".join(f"{FOLDER}/{page}" for page in pages)
        source[0] += f"\n## Options of every command\n\n```{{toctree}}\n:maxdepth: 2\n\n{lines}\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("source-read", add_menu)
    return {"parallel_read_safe": True}
