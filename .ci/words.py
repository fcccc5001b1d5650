"""Texts of the project (docstrings, comments, strings, Markdown), and the words in them that words.csv bans.

python .ci/words.py [FILE or FOLDER ...]: a line for every banned word, docstring without its subject, long sentence.

words.csv: kind, pattern, instead. Kind `text`: a regular expression over texts, a space matches any white space. Kind
`name`: an identifier, whole. Strings without a space are formats (keys, options, names of files) and are no text.
"""

from __future__ import annotations

import ast
import csv
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_WORDS = 30
"""Words of a docstring's sentence, code spans apart. CONTRIBUTING asks for 25."""
WORDS_CSV = Path(__file__).with_name("words.csv")
DEFINITION = re.compile(r"(What|Who|Whose|Whether|How|Which|Where)\b")
"""Opening word of a docstring that does not name its subject."""
_CODE = re.compile(r"`[^`]*`")
_FENCE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
_DIRECTIVE = re.compile(r"#\s*(noqa|type:|fmt:|mypy:|!)")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”)]?\s+(?=[A-Z0-9“\"(µ])")
_CAUSES = re.compile(r"(Raises )?`\w+Error`[^:]{0,40}:")
_LIST_ITEM = re.compile(r"\s*([-*•]|\d+[.)])\s")


@dataclass(frozen=True)
class Text:
    """A piece of text in a file."""

    path: Path
    line: int
    """Its first line (1 …)."""
    kind: str
    """docstring, comment, string or page."""
    text: str
    """With the file's line breaks, where it has some."""

    def line_of(self, place: int) -> int:
        """The line of the character at an index."""
        return self.line + self.text.count("\n", 0, place)


@dataclass(frozen=True)
class Word:
    """A row of words.csv."""

    kind: str
    pattern: str
    instead: str

    @property
    def expression(self) -> re.Pattern[str]:
        return re.compile(self.pattern.replace(" ", r"\s+"), re.IGNORECASE)


@cache
def banned_words(kind: str) -> tuple[Word, ...]:
    """The rows of words.csv of a kind, `text` or `name`."""
    with WORDS_CSV.open(newline="", encoding="utf-8") as file:
        return tuple(Word(**row) for row in csv.DictReader(file) if row["kind"] == kind)


def sources(root: Path) -> list[Path]:
    """The Python files of the package."""
    return sorted((root / "src").rglob("*.py"))


def pages(root: Path) -> list[Path]:
    """README and the guides; the glossary lists the banned words itself."""
    guides = sorted((root / "docs").glob("*.md"))
    return [root / "README.md", *(path for path in guides if path.name != "glossary.md")]


@cache
def texts_of(path: Path) -> tuple[Text, ...]:
    """The texts of a Python or Markdown file."""
    return (text_of_page(path),) if path.suffix == ".md" else tuple(texts_of_source(path))


def banned_texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, `"goes on" -> "resumes"`) of every banned idiom of a file."""
    for text in texts_of(path):
        for line, found, instead in banned_in(text, banned_words("text")):
            yield line, f'"{found}" -> "{instead}"'


def banned_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, `Entrant -> SystemSpec`) of every definition with a banned name."""
    instead = {word.pattern: word.instead for word in banned_words("name")}
    for line, name in names_of_source(path) if path.suffix == ".py" else ():
        if name in instead:
            yield line, f"{name} -> {instead[name]}"


def definitions(path: Path) -> Iterator[tuple[int, str]]:
    """(line, opening) of docstrings that begin with What, Who, Whether …, in place of the thing's name."""
    for text in texts_of(path):
        if text.kind == "docstring" and DEFINITION.match(text.text):
            yield text.line, f'"{" ".join(text.text.split()[:4])} …" -> begin with the name of the thing'


def long_sentences(path: Path) -> Iterator[tuple[int, str]]:
    """(line, words and opening) of the sentences of docstrings with more than `MOST_WORDS` words."""
    for text in texts_of(path):
        for line, count, sentence in sentences_over(text, MOST_WORDS) if text.kind == "docstring" else ():
            yield line, f"{count} words: {sentence[:60]}…"


CHECKS = (banned_texts, banned_names, definitions, long_sentences)


def texts_of_source(path: Path) -> Iterator[Text]:
    """Docstrings (also of attributes), comments and strings of a Python file."""
    source = path.read_text(encoding="utf-8")
    yield from _comments(path, source)
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in _docstrings(tree)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inside -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        else:
            continue
        if id(node) in docstrings:
            yield Text(path, node.lineno, "docstring", text)
        elif len(text.split()) > 1:
            yield Text(path, node.lineno, "string", text)


def text_of_page(path: Path) -> Text:
    """A Markdown file without its blocks of code."""
    text = path.read_text(encoding="utf-8")
    return Text(path, 1, "page", _FENCE.sub(lambda found: "\n" * found.group().count("\n"), text))


def banned_in(text: Text, words: tuple[Word, ...]) -> Iterator[tuple[int, str, str]]:
    """(line, text, instead) of every banned word outside code spans."""
    plain = _CODE.sub(lambda found: re.sub(r"[^\n]", "`", found.group()), text.text)
    for word in words:
        for found in word.expression.finditer(plain):
            yield text.line_of(found.start()), " ".join(found.group().split()), word.instead


def names_of_source(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of what a Python file defines: itself, classes, functions, arguments, variables, attributes."""
    yield 1, path.stem if path.stem != "__init__" else path.parent.name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def sentences_over(text: Text, most_words: int) -> Iterator[tuple[int, int, str]]:
    """(line, words, sentence) of sentences with more words than that, in running text: no lists, tables, code.

    `InputError`: cause, cause, cause counts as a list.
    """
    for place, paragraph in _paragraphs(text.text):
        start = 0
        for sentence in _SENTENCE_END.split(paragraph):
            words = re.findall(r"\w[\w'’.,/%-]*", _CODE.sub(" ", sentence))
            at = paragraph.find(sentence, start)
            start = at + len(sentence)
            if len(words) > most_words and not _CAUSES.match(sentence.lstrip()):
                yield text.line_of(place + at), len(words), " ".join(sentence.split())


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """(index, paragraph): stretches of lines that are neither blank, indented further, list items nor table rows."""
    lines = text.split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    place, begun = 0, 0
    kept: list[str] = []
    for i, line in enumerate([*lines, ""]):
        body = line[margin:] if i else line
        is_example = body.startswith((">>> ", "... "))
        if not body.strip() or body[:1] == " " or is_example or _LIST_ITEM.match(body) or re.search(r"\S {2,}\S", body):
            if kept:
                yield begun, "\n".join(kept)
            kept = []
        else:
            begun = begun if kept else place
            kept.append(line)
        place += len(line) + 1


def _docstrings(tree: ast.AST) -> Iterator[ast.Expr]:
    """String statements: of modules, classes, functions, and below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node


def _comments(path: Path, source: str) -> Iterator[Text]:
    """Comments; lines that follow each other are one."""
    first, last = 0, -1
    lines: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        if lines and token.start[0] != last + 1:
            yield Text(path, first, "comment", "\n".join(lines))
            lines = []
        first = first if lines else token.start[0]
        last = token.start[0]
        lines.append(token.string.lstrip("# "))
    if lines:
        yield Text(path, first, "comment", "\n".join(lines))


def main(arguments: list[str]) -> int:
    """Prints what the checks find; 1 where there is something."""
    places = [Path(argument) for argument in arguments] or [*sources(ROOT), *pages(ROOT)]
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))]
    found = [f"{path}:{line}: {text}" for path in files for check in CHECKS for line, text in sorted(check(path))]
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
