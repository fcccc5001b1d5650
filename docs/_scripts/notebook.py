"""Notebook of the documentation: docs/notebook.ipynb, the cells of docs/notebook.md with their outputs.

python docs/_scripts/notebook.py: executes the cells in a new kernel and writes the notebook, in some minutes. A test
executes them too and compares. The packages jupytext, nbclient and ipykernel are in the extra `dev`.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

DOCS = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = DOCS / "notebook.md", DOCS / "notebook.ipynb"
LARGEST_BYTES = 300_000


def paired(page: Path = PAGE) -> NotebookNode:
    """The notebook of a page: its cells in order, without outputs. The same page gives the same notebook."""
    notebook = jupytext.read(page)
    metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(metadata)
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook: NotebookNode, seconds: int = 900) -> NotebookNode:
    """Executes the cells in a new folder, in place, and keeps the outputs that a reader sees.

    Raises nbclient's `CellExecutionError` for a cell that fails.
    """
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def kept(output: NotebookNode) -> NotebookNode:
    """An output without a second form of the same image, and without a place of this machine."""
    data = output.get("data", {})
    if "image/jpeg" in data:
        data.pop("image/png", None)
    for kind in data:
        if kind.startswith("image/"):
            data[kind] = "".join(data[kind].split())
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-fA-F]+", "", data["text/plain"]).replace(f"{DOCS.parent}/", "")
    if output.output_type in ("display_data", "execute_result"):
        output.metadata = nbformat.from_dict({})
    return output


if __name__ == "__main__":
    nbformat.write(execute(paired()), NOTEBOOK)
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size:,} bytes, at most {LARGEST_BYTES:,}")
