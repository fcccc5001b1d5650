"""Imports point down only (the layers of docs/architecture.md, over the ast); what importing must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import longvit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "longvit"
FILES = sorted(PACKAGE.rglob("*.py"))
FORWARDED = {f"longvit.{name}": module for name, module in longvit._MODULES.items()}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "core", "misc"}


def layers() -> dict[str, int]:
    """Name of a part -> its height, read from the list in docs/architecture.md (the lowest line is 0)."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## Imports point down only", 1)[1]
    lines = re.search(r"```text\n(.*?)```", section, re.DOTALL)
    assert lines, "docs/architecture.md has lost its list of layers"
    names = [line.split() for line in lines.group(1).strip().splitlines()]
    return {name: height for height, line in enumerate(reversed(names)) for name in line}


def part(path: Path) -> str:
    """`src/longvit/slides/reader.py` -> `slides`; `src/longvit/cli.py` -> `cli`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute module name that a file imports, at the top or inside a function, with its line."""
    package = ("longvit", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            for alias in node.names if module == "longvit" else ():
                yield f"longvit.{alias.name}", node.lineno
            if module != "longvit":
                yield module, node.lineno


def upward(path: Path, height: dict[str, int]) -> list[str]:
    """What a file imports that does not lie below it: `file:line imports name`."""
    here = part(path)
    wrong = []
    for name, line in imports(path):
        name = FORWARDED.get(name, name)  # `from longvit import open_slide` is an import of slides
        there = name.split(".")[1] if name.startswith("longvit.") else None
        if there is None or there == here or there not in height:  # `from longvit import __version__`
            continue
        if height[there] >= height[here]:
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return sorted(wrong)


def test_every_part_stands_in_the_plan() -> None:
    strangers = {part(path) for path in FILES} - set(layers()) - {"__init__", "__main__"}
    assert not strangers, f"draw them into the layers of docs/architecture.md first: {sorted(strangers)}"


def test_imports_point_down_only() -> None:
    height = layers()
    wrong = [line for path in FILES if part(path) in height for line in upward(path, height)]
    assert not wrong, "\n".join(wrong)


def test_an_import_upwards_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "slides").mkdir()
    file = tmp_path / "slides" / "reader.py"
    file.write_text(
        "def f():\n    from ..model import longvit\nimport longvit.config\nfrom longvit import slide_jobs, load_model\n"
    )
    height = {"slide_jobs": 3, "model": 2, "slides": 2, "config": 1}
    assert upward(file, height) == [
        "slides/reader.py:2 imports longvit.model",
        "slides/reader.py:4 imports longvit.model.pretrained",
        "slides/reader.py:4 imports longvit.slide_jobs",
    ]


def test_attention_can_be_read_alone() -> None:
    """The paper's equation needs torch and the one error, nothing else of ours and no other library.

    Its Triton kernel needs triton, which is optional: imported at the first call that asks for it."""
    allowed = {"torch", "triton", "longvit.errors", "longvit.attention"}
    for path in (PACKAGE / "attention").rglob("*.py"):
        for name, line in imports(path):
            top = name.split(".")[0]
            ok = any(name == a or name.startswith(a + ".") for a in allowed) or top in sys.stdlib_module_names
            assert ok, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_dino_knows_neither_slides_nor_the_loop() -> None:
    """The mathematics of pretraining can be tested on tensors alone."""
    allowed = {"torch", "longvit.errors", "longvit.attention", "longvit.model", "longvit.parallel", "longvit.dino"}
    for path in (PACKAGE / "dino").rglob("*.py"):
        for name, line in imports(path):
            top = name.split(".")[0]
            ok = any(name == a or name.startswith(a + ".") for a in allowed) or top in sys.stdlib_module_names
            assert ok, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_slides_need_no_torch() -> None:
    for path in (PACKAGE / "slides").rglob("*.py"):
        for name, line in imports(path):
            assert name.split(".")[0] != "torch", f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_no_file_is_called_utils() -> None:
    wrong = [str(path.relative_to(ROOT)) for path in FILES if path.stem in FORBIDDEN_NAMES]
    wrong += [str(path.parent.relative_to(ROOT)) for path in FILES if path.parent.name in FORBIDDEN_NAMES]
    assert not wrong, f"name it after its concept: {wrong}"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import longvit", {"torch", "numpy", "pandas", "matplotlib", "sklearn", "openslide", "cyclopts"}),
        ("import longvit; longvit.InputError", {"torch", "numpy"}),
        ("import longvit.cli", {"torch", "pandas", "matplotlib", "sklearn", "h5py", "openslide"}),
        ("import longvit; longvit.open_slide", {"torch", "pandas", "matplotlib", "sklearn"}),
    ],
)
def test_importing_stays_light(code: str, heavy: set[str]) -> None:
    script = f"import sys\n{code}\nprint(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
