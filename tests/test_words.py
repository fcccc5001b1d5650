"""The field's words in docstrings, comments, messages, guides and names: no translated idiom, no private term.

.ci/words.csv lists what is banned, each with what to write instead; `python .ci/words.py FILE` prints what is found.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


words = load("words")
FILES = [*words.sources(ROOT), *words.pages(ROOT)]


def assert_none(check: Callable[[Path], Iterator[tuple[int, str]]]) -> None:
    lines = [f"{path.relative_to(ROOT)}:{line}: {text}" for path in FILES for line, text in sorted(check(path))]
    counts = ", ".join(f"{name} {count}" for name, count in sorted(Counter(map(package, lines)).items()))
    assert not lines, f"{len(lines)} ({counts})\n" + "\n".join(lines)


def package(line: str) -> str:
    """The package that `src/longvit/cli/train.py:3: …` is in; `longvit` for a module beside them, else the page."""
    path = Path(line.split(":")[0])
    return path.parts[2] if len(path.parts) > 3 else "longvit" if path.suffix == ".py" else str(path)


def test_no_translated_idiom_is_in_a_text() -> None:
    assert_none(words.banned_texts)


def test_no_private_term_is_a_name() -> None:
    assert_none(words.banned_names)


def test_every_docstring_begins_with_the_name_of_the_thing() -> None:
    assert_none(words.definitions)


def test_no_sentence_of_a_docstring_is_too_long() -> None:
    assert_none(words.long_sentences)


def test_no_term_of_the_glossary_is_banned() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    terms = [term.strip() for row in rows for term in row.split(",")]
    wrong = [
        (term, word.instead) for term in terms for word in words.banned_words("text") if word.expression.search(term)
    ]
    assert len(terms) > 20
    assert not wrong


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "leases.py"
    path.write_text(
        '"""A run goes\non with `goes on`."""\n'
        "# nobody is\n# at work\n"
        'KEY = "goes_on"\n'
        "def hold(who):\n"
        "    raise ValueError(f\"{who}: it stands \"\n        f'in {who}')\n"
    )
    return path


def test_an_idiom_is_found_across_lines_and_not_in_code(source: Path) -> None:
    banned = words.banned_words("text")
    found = [found for text in words.texts_of_source(source) for found in words.banned_in(text, banned)]
    assert sorted((line, text) for line, text, _ in found) == [
        (1, "goes on"),
        (3, "nobody"),
        (4, "at work"),
        (7, "stands in"),
    ]
    assert (6, "who") in list(words.names_of_source(source))


def test_a_long_sentence_is_counted_without_lists_tables_and_code(tmp_path: Path) -> None:
    long = "Word" + " word" * 30
    docstring = f"A thing. {long}\n    {long.lower()}\n\n    - {long}\n\n    name    {long}\n    `{long}` is short."
    found = list(words.sentences_over(words.Text(tmp_path, 1, "docstring", docstring), 30))
    assert [(line, count) for line, count, _ in found] == [(1, 62)]
