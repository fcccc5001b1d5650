"""The notebook of the documentation: its page and its file agree, and a new run gives the outputs that it shows."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.docs.blocks import alike
from tests.docs.test_site import DOCS, load

for package in ("jupytext", "nbclient", "ipykernel"):
    pytest.importorskip(package, reason=f"the package {package} is not installed (extra longvit[dev])")
SCRIPT = DOCS / "_scripts" / "notebook.py"
TOLERANCE = 0.1
"""Relative, of the numbers in the outputs: last bits of a training differ between processors."""
DIFFERENCE = 8.0
"""Mean difference of two images, in grey levels."""


def stored() -> dict[str, Any]:
    return dict(json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8")))


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Cells whose outputs differ: in kind, in a line of text, or in an image."""
    found = []
    for number, (a, b) in enumerate(zip(before["cells"], after["cells"], strict=True), 1):
        outputs = list(zip(a.get("outputs", []), b.get("outputs", []), strict=False))
        if len(a.get("outputs", [])) != len(b.get("outputs", [])) or not all(same(x, y) for x, y in outputs):
            found.append(f"cell {number}: {''.join(a['source'])[:60]!r}")
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if a["output_type"] != b["output_type"]:
        return False
    if a["output_type"] == "stream":
        return same_text(a["text"], b["text"])
    return a["data"].keys() == b["data"].keys() and all(
        same_image(base64.b64decode(value), base64.b64decode(b["data"][kind]))
        if kind.startswith("image/")
        else same_text(value, b["data"][kind])
        for kind, value in a["data"].items()
    )


def same_text(a: str | list[str], b: str | list[str]) -> bool:
    embedded = r"data:image/jpeg;base64,([^\"]+)"  # an image inside HTML
    texts = ["".join(text) for text in (a, b)]
    images = [[base64.b64decode(data) for data in re.findall(embedded, text)] for text in texts]
    if len(images[0]) != len(images[1]) or not all(map(same_image, *images)):
        return False
    lines = [re.sub(embedded, "", text).splitlines() for text in texts]
    return len(lines[0]) == len(lines[1]) and all(
        alike(" ".join(x.split()), " ".join(y.split()), TOLERANCE) for x, y in zip(*lines, strict=True)
    )


def same_image(a: bytes, b: bytes) -> bool:
    x, y = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) for data in (a, b))
    return x.shape == y.shape and float(abs(x - y).mean()) <= DIFFERENCE


def test_the_notebook_has_the_cells_of_its_page() -> None:
    paired = load(SCRIPT).paired()
    cells = [(cell["id"], cell["cell_type"], "".join(cell["source"])) for cell in stored()["cells"]]
    assert cells == [(cell.id, cell.cell_type, cell.source) for cell in paired.cells], SCRIPT


def test_the_notebook_is_small_and_holds_no_place_of_the_machine_that_made_it() -> None:
    text = (DOCS / "notebook.ipynb").read_text(encoding="utf-8")
    assert len(text) <= load(SCRIPT).LARGEST_BYTES
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)


def test_every_output_of_the_notebook_is_on_the_page_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    page = load(DOCS / "_ext" / "notebook_page.py").markdown(stored())
    outputs = [output for cell in stored()["cells"] for output in cell.get("outputs", [])]
    images = [output for output in outputs if any(kind.startswith("image/") for kind in output.get("data", {}))]
    assert len(images) >= 4
    assert page.count("](data:image/") == len(images)
    assert page.count("```{raw} html") == 1  # the thumbnail of the slide
    assert page.count("```text") == len(outputs) - len(images) - 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_new_run_of_the_notebook_gives_the_outputs_that_it_shows() -> None:
    script = load(SCRIPT)
    new = json.loads(script.nbformat.writes(script.execute(script.paired(), seconds=1500)))
    assert not differences(stored(), new), "python docs/_scripts/notebook.py"


@pytest.mark.slow
def test_a_cell_that_fails_ends_the_run(tmp_path: Path) -> None:
    script = load(SCRIPT)
    page = tmp_path / "page.md"
    page.write_text(script.PAGE.read_text(encoding="utf-8").split("# A notebook")[0] + "```python\n1 / 0\n```\n")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        script.execute(script.paired(page))


def test_an_output_that_differs_is_found() -> None:
    def png(grey: int) -> str:
        data = io.BytesIO()
        Image.new("L", (8, 8), grey).save(data, "PNG")
        return base64.b64encode(data.getvalue()).decode()

    def notebook(text: str, grey: int, html: str = "<p>a</p>") -> dict[str, Any]:
        shown = {"image/png": png(grey), "text/html": html}
        outputs = [
            {"output_type": "stream", "text": text},
            {"output_type": "display_data", "data": shown},
        ]
        return {"cells": [{"source": "a", "outputs": outputs}]}

    first = notebook("AUC 0.90, 20 slides\n", 100)
    assert not differences(first, notebook("AUC 0.91, 20 slides\n", 102))
    for other in (
        notebook("AUC 0.70, 20 slides\n", 100),
        notebook("AUC 0.90, 20 tiles\n", 100),
        notebook("AUC 0.90, 20 slides\nmore\n", 100),
        notebook("AUC 0.90, 20 slides\n", 120),
        notebook("AUC 0.90, 20 slides\n", 100, "<p>b</p>"),
        {"cells": [{"source": "a", "outputs": []}]},
    ):
        assert differences(first, other)
