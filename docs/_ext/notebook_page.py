"""Page of the notebook: on the site, notebook.md has the outputs that notebook.ipynb stores below its cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "notebook"
IMAGES = ("image/png", "image/jpeg")


def joined(text: str | list[str]) -> str:
    """Text that the format stores as one string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def shown(output: dict[str, Any], place: str) -> str:
    """Markdown of one output: an image before HTML before text."""
    if output["output_type"] == "stream":
        return f"```text\n{joined(output['text']).rstrip()}\n```"
    data = output["data"]
    for kind in IMAGES:
        if kind in data:
            return f"![Output of {place}](data:{kind};base64,{''.join(joined(data[kind]).split())})"
    if "text/html" in data:
        return f"```{{raw}} html\n{joined(data['text/html'])}\n```"
    return f"```text\n{joined(data['text/plain']).rstrip()}\n```"


def markdown(notebook: dict[str, Any]) -> str:
    """The notebook as a page: text, code and the outputs of each cell."""
    parts, number = [], 0
    for cell in notebook["cells"]:
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        number += 1
        parts.append(f"```python\n{source}\n```")
        parts += [shown(output, f"cell {number}") for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def add_outputs(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == PAGE:
        notebook = Path(app.srcdir) / f"{PAGE}.ipynb"
        app.env.note_dependency(str(notebook))
        source[0] = markdown(json.loads(notebook.read_text(encoding="utf-8")))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", add_outputs, priority=100)  # before root_pages gives the links of the site
    return {"parallel_read_safe": True}
