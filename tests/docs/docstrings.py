"""Examples of docstrings: every function, class and module of the package that has one, by its place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.blocks import ROOT

NOT_RUN = {
    "longvit.encoders.weights.load_encoder": "file: the weights of UNI are gated",
    "longvit.reproduce.protocol.read_protocol": "file: a clone of the repository HIPT",
    "longvit.reproduce.run.reproduce": "file: a clone of the repository MCAT",
}
"""Name → `REASON: why`, with the reasons of `blocks.REASONS`."""
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Example:
    """Docstring with lines `>>>`."""

    name: str
    """Full name: longvit.slides.reader.Slide.canvas."""
    path: str
    """File below the root of the repository."""
    line: int
    text: str


def examples(source: Path = ROOT / "src") -> list[Example]:
    """Docstrings with an example, file by file."""
    return [example for path in sorted(source.rglob("*.py")) for example in of_file(path, source)]


def of_file(path: Path, source: Path) -> Iterator[Example]:
    module = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")

    def within(node: ast.AST, name: str) -> Iterator[Example]:
        text = ast.get_docstring(node) or "" if isinstance(node, (ast.Module, *DEFINITIONS)) else ""
        if ">>> " in text:
            yield Example(name, path.relative_to(source.parent).as_posix(), getattr(node, "lineno", 1), text)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, DEFINITIONS):
                yield from within(child, f"{name}.{child.name}")

    yield from within(ast.parse(path.read_text(encoding="utf-8")), module)
