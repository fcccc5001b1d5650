"""Size, words and structure of the package in several checkouts, as a Markdown table for comparing versions.

python .ci/measure_code.py CHECKOUT [CHECKOUT ...]: a column per checkout. Nothing of a checkout is run or imported; the
lists of words are those of this file's own folder.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from words import DEFINITION, banned_in, banned_words, names_of_source, pages, sources, text_of_page, texts_of_source

LONG_FUNCTION, MANY_PARAMETERS = 60, 10
PRIVATE_MODULES = frozenset(
    [
        *("average", "batch", "choice", "claims", "costs", "describe", "entrants", "events", "identity", "looked_at"),
        *("pretrained", "publish", "published", "published_rule", "rule", "shares", "study", "watch"),
    ]
)
"""Names of modules and packages without a term of the field."""
PRIVATE_NAMES = frozenset(
    [
        *("figure", "figures", "Figure", "picture", "pictures", "Picture", "Rule", "DinoRule", "PublishedRule", "rule"),
        *("moved", "clip", "bind", "Study", "make_study", "Entrant", "entrant", "who", "each", "Cell", "run_cell"),
        *("CellJob", "cell", "cells", "FoldBags", "Looked", "read_looked_at", "of_every_slide", "claim", "Claims"),
        *("facts", "JobFacts", "decisive", "_NOT_DECISIVE", "outputs", "answer_columns", "answer_cells"),
        *("answers_digest", "alone_in", "lost_interrupts_come_again", "words", "heard", "_listen", "_speak"),
        *("strip_px", "of", "found", "theirs", "rest", "here"),
    ]
)
"""Names of classes, functions, arguments, attributes and variables without one."""
RUN_FILES = {"run.json", "run.lock", "settings.yaml", "metrics.json"}
RUN_CALLS = {"flock", "refuse_other_settings", "settings_difference"}
CPU_COUNTS = {"cpu_count", "sched_getaffinity", "process_cpu_count"}

Graph = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Module:
    """A Python file of the package, parsed."""

    name: str
    """longvit.slides.reader; a package's `__init__` has the package's name."""
    path: Path
    lines: int
    tree: ast.Module

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    @cached_property
    def calls(self) -> set[str]:
        """Names that are called, in full and their last part: subprocess.Popen and Popen."""
        called = {ast.unparse(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}
        return called | {name.rpartition(".")[2] for name in called}

    @cached_property
    def strings(self) -> set[str]:
        return {n.value for n in ast.walk(self.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}

    @property
    def writes_a_run(self) -> bool:
        """True where it names a file that begins or ends a run, locks a folder, or refuses other settings."""
        return bool(self.strings & RUN_FILES or self.calls & RUN_CALLS)

    @property
    def defines_one_line(self) -> bool:
        """True where a function of that name, or `_line`, takes an error."""
        return any(
            re.fullmatch("_?(one_)?line", node.name) and node.args.args[:1] and node.args.args[0].arg == "error"
            for node in self.functions
        )

    @property
    def flattens_an_error(self) -> bool:
        """True where the words of an error's text are joined by spaces."""
        return any(
            re.fullmatch(r"' '\.join\(str\(\w*error\w*\)\.split\(\)\)", ast.unparse(n))
            for n in ast.walk(self.tree)
            if isinstance(n, ast.Call)
        )


def read_package(checkout: Path) -> list[Module]:
    found = []
    for path in sources(checkout):
        parts = path.relative_to(checkout / "src").with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, len(text.splitlines()), ast.parse(text)))
    return found


def import_graph(modules: Iterable[Module]) -> Graph:
    """Module -> the modules that it imports anywhere, also within functions and for type checking only."""
    trees = {module.name: module.tree for module in modules}
    graph = {}
    for name, tree in trees.items():
        imported: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {alias: f"{node.module}.{alias}" for alias in (a.name for a in node.names)}
                imported |= {full if full in trees else node.module for full in inner.values()}
        graph[name] = frozenset((imported & trees.keys()) - {name})
    return graph


def package_graph(graph: Graph) -> Graph:
    """The same between packages and top-level modules; the root `longvit` is one of them."""

    def part(name: str) -> str:
        return ".".join(name.split(".")[:2])

    found: dict[str, set[str]] = {}
    for name, imported in graph.items():
        found.setdefault(part(name), set()).update(part(other) for other in imported if part(other) != part(name))
    return {name: frozenset(imported) for name, imported in found.items()}


def without_root(graph: Graph) -> Graph:
    """The root offers names of every package lazily: with it all of them are one circle."""
    return {name: imported - {"longvit"} for name, imported in graph.items() if name != "longvit"}


def circles(graph: Graph) -> list[frozenset[str]]:
    """Strongly connected components of more than one node."""
    reachable = {name: _reachable(graph, name) for name in graph}
    found = {frozenset(b for b in reachable[a] if a in reachable[b]) | {a} for a in graph if a in reachable[a]}
    return sorted((circle for circle in found if len(circle) > 1), key=sorted)


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += graph[name]
    return found


def text_rows(checkout: Path) -> Iterator[tuple[str, str]]:
    banned = banned_words("text")
    texts = [text for path in sources(checkout) for text in texts_of_source(path)]
    readme, *guides = [text_of_page(path) for path in pages(checkout)]
    docstrings = [text for text in texts if text.kind == "docstring"]
    groups = {
        "idioms in docstrings": docstrings,
        "idioms in comments": [text for text in texts if text.kind == "comment"],
        "idioms in strings (help, errors, reports)": [text for text in texts if text.kind == "string"],
        "idioms in README": [readme],
        "idioms in docs": guides,
    }
    counts = {name: sum(len(list(banned_in(text, banned))) for text in group) for name, group in groups.items()}
    yield "translated idioms and private terms in texts", f"{sum(counts.values()):,}"
    for name, count in counts.items():
        yield f"– {name}", f"{count:,}"
    opened = sum(bool(DEFINITION.match(text.text)) for text in docstrings)
    yield "docstrings that open with What, Who, Whether, How, Which, Where", f"{opened:,} of {len(docstrings):,}"
    modules, names = Counter[str](), Counter[str]()
    for path in sources(checkout):
        (_, module), *defined = names_of_source(path)
        modules.update({module} & PRIVATE_MODULES)
        names.update(name for _, name in defined if name in PRIVATE_NAMES)
    yield "private names of modules", f"{len(modules)} of {len(PRIVATE_MODULES)}"
    yield (
        "private names of classes, functions, arguments, attributes, variables",
        f"{len(names)} of {len(PRIVATE_NAMES)}",
    )
    yield "– their definitions", f"{names.total():,}"
    yield "– the most frequent", ", ".join(f"{name} {count}" for name, count in names.most_common(5)) or "none"


def size_rows(modules: list[Module]) -> Iterator[tuple[str, str]]:
    lines = sorted(module.lines for module in modules)
    longest = max(modules, key=lambda module: module.lines)
    functions = [node for module in modules for node in module.functions]
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for node in functions)
    yield "lines of src", f"{sum(lines):,}"
    yield "files", f"{len(modules)}"
    yield "median, longest file (lines)", f"{statistics.median(lines):.0f}, {longest.lines} ({longest.path.name})"
    p99 = lengths[round(0.99 * (len(lengths) - 1))]
    yield "functions", f"{len(functions):,}"
    yield "median, p99, longest function (lines)", f"{statistics.median(lengths):.0f}, {p99}, {lengths[-1]}"
    yield f"functions over {LONG_FUNCTION} lines", f"{sum(length > LONG_FUNCTION for length in lengths)}"
    many = sum(_parameters(node) > MANY_PARAMETERS for node in functions)
    yield f"functions with more than {MANY_PARAMETERS} parameters", f"{many}"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in arguments)


def structure_rows(modules: list[Module]) -> Iterator[tuple[str, str]]:
    graph = import_graph(modules)
    of_packages, of_modules = circles(package_graph(graph)), circles(without_root(graph))
    yield "import circles", f"{len(of_packages) + len(of_modules)}"
    yield "– of packages, the root included", f"{len(of_packages)}{_sizes(of_packages)}"
    yield "– of modules, the root apart", f"{len(of_modules)}{_sizes(of_modules)}"
    groups = {
        "modules that write a run (its settings, lock, end)": [m for m in modules if m.writes_a_run],
        "modules that start a child process": [m for m in modules if m.calls & {"Popen", "Process"}],
        "modules that write CSV": [m for m in modules if m.calls & {"csv.writer", "DictWriter"}],
        "modules that define one_line": [m for m in modules if m.defines_one_line],
        "modules that put an error's text on one line": [m for m in modules if m.flattens_an_error],
        "modules that count CPUs": [m for m in modules if m.calls & CPU_COUNTS],
    }
    for name, group in groups.items():
        yield name, f"{len(group)}"


def _sizes(found: list[frozenset[str]]) -> str:
    return f" (of {', '.join(str(len(circle)) for circle in found)})" if found else ""


def measure(checkout: Path) -> dict[str, str]:
    """Row -> text of a checkout's column."""
    modules = read_package(checkout)
    return dict([*text_rows(checkout), *size_rows(modules), *structure_rows(modules)])


def main(checkouts: list[str]) -> None:
    columns = {checkout: measure(Path(checkout)) for checkout in checkouts}
    print("|  |", " | ".join(columns), "|")
    print("|---|", "|".join("---:" for _ in columns), "|", sep="")
    for row in next(iter(columns.values())):
        print("|", row, "|", " | ".join(column[row] for column in columns.values()), "|")


if __name__ == "__main__":
    main(sys.argv[1:] or ["."])
