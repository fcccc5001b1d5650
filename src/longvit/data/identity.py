"""Who is who: the one place that decides whether two texts of tables mean one patient, slide or class, or nobody.

`canonical` is an id as it is compared: without outer blanks, in the Unicode form NFC. Two ids that differ, but not in
their folded form (`slides/spelling.py`: capitals, leading zeros, `.0`, dashes, invisible characters …), are never taken
for two and never for one: `refuse_clashes` names both.

A blank cell is missing, and so are the marks that programs write for it: nan, NA, N/A, <NA>, NaT, #N/A. The words
`none` and `null` are missing among numbers; in a column of words they are a class, as they are in a grade
`none, low, high`. A class that the user names (`--keep`) is a class whatever it is called.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from longvit.errors import InputError
from longvit.slides.spelling import composed, folded

_MARKS = frozenset({"nan", "na", "n/a", "<na>", "nat", "#n/a", "#na", "1.#qnan", "-nan"})
_WORDS = frozenset({"none", "null"})
_WHOLE = re.compile(r"(-?)0*([0-9]{1,18})(?:[.,]0*)?")
_ROUNDED = re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+")
_FORMULA = re.compile(r"[=@]|[+-](?=.*[(|!])|[+-][0-9.]+[-+*/^&]")


# --- ids --------------------------------------------------------------------------------------------------------------


def canonical(text: str) -> str:
    """An id or a class as it is compared: no outer blanks of any kind, no byte order mark, Unicode form NFC."""
    return composed(text).strip().strip("\ufeff").strip()


def is_missing(text: str) -> bool:
    """A blank cell, or a mark that a program writes for one (see the top of this file)."""
    return text.strip().lower() in _MARKS or not canonical(text)


def is_missing_number(text: str) -> bool:
    """The same in a column of numbers, where the words none and null are no answer either."""
    return is_missing(text) or text.strip().lower() in _WORDS


def read_id(text: str, column: str, where: str) -> str:
    """The canonical text of a cell that names a patient or a slide; "" where it is missing.

    `InputError`: a control character or line break in it, a number that a spreadsheet has rounded (1.2E+11), the word
    none, null or NA, of which nobody knows whether it is a name. `where`: `cohort.csv, line 3`.
    """
    name = canonical(text)
    if is_missing(name) and name.lower() not in ("na", "n/a"):
        return ""
    if is_missing_number(name):
        raise InputError(f"{where}: {column} is {name!r}: a name, or nobody? Empty the cell, or write another name")
    refuse_control_characters(name, column, where)
    if _ROUNDED.fullmatch(name):
        raise InputError(
            f"{where}: {column} is {name!r}, a long number that a spreadsheet has rounded; "
            f"export the table again with this column as text"
        )
    return name


def refuse_control_characters(text: str, column: str, where: str) -> None:
    """`InputError` for a line break (often a quote that is never closed), an escape of a terminal and the like."""
    if bad := next((c for c in text if unicodedata.category(c) == "Cc"), None):
        reason = "a line break; is a quote not closed?" if bad in "\r\n" else f"the control character U+{ord(bad):04X}"
        raise InputError(f"{where}: {column} {text[:40]!r} has {reason}; remove it")


def formula_note(cells: Iterable[tuple[str, str]], source: str) -> tuple[str, ...]:
    """One sentence where a spreadsheet would run an id or a class (`cells`: text and place) as a formula, else none.

    They are written into the results as they are, since quoting them would make other names of them.
    """
    found = [(text, place) for text, place in cells if _FORMULA.match(text)]
    if not found:
        return ()
    more = f" ({len(found) - 1} more such cells)" if found[1:] else ""
    return (
        f"{source}, {found[0][1]}: {found[0][0]!r} is a formula for a spreadsheet{more}; results have it as it is: "
        f"rename it, or import them as text",
    )


def clashes(ids: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different ids that are one in their folded form, each later id with the first of its form."""
    first: dict[str, str] = {}
    found = []
    for name in dict.fromkeys(ids):
        if (other := first.setdefault(folded(name), name)) != name:
            found.append((other, name))
    for form, name in list(first.items()):
        if " " in form:
            others = {first.get(other, name) for other in _without_blanks(form)} - {name}
            found += [(other, name) for other in sorted(others)]
    return found


def _without_blanks(form: str) -> tuple[str, ...]:
    """What a form with inner blanks may be elsewhere. Between digits a blank says something: P1 2 is not P12."""
    dashed = form.replace(" ", "-")
    if re.search(r"[0-9] [0-9]", form) and not re.fullmatch(r"[0-9]{1,3}(?: [0-9]{3})+", form):
        return (dashed,)
    return dashed, form.replace(" ", "")


def spelled_like(name: str, others: Iterable[str]) -> str | None:
    """Of `others`, one that differs from `name` in its spelling only; a hint, never an answer."""
    form = folded(name)
    return next((other for other in others if other != name and folded(other) == form), None)


def shown(name: str) -> str:
    """An id for a message; what cannot be seen or told apart is written out."""
    text = repr(name).replace("  ", "␣␣")  # a message on one line has no two blanks
    return text if repr(name) == ascii(name) else f"{text} ({ascii(name)[1:-1]})"


def first_places(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Id -> the place (`line 3`, or "" where it is unknown) where it stands first, in the order given."""
    found: dict[str, str] = {}
    for name, place in names:
        found.setdefault(name, place)
    return found


def way_out(one: str, other: str) -> str:
    """What makes two spellings one."""
    if folded(one).isdigit() and one.isascii() and other.isascii():
        return "a table program took one of them for a number: export that column as text, and write one spelling"
    return "write one spelling everywhere, or, if they are two, rename one"


def refuse_clashes(what: str, where: Mapping[str, str], source: str) -> None:
    """`InputError` where two ids differ in their spelling only; `where`: id -> `line 3`, or "" where it is unknown."""
    if not (pairs := clashes(where)):
        return
    one, other = pairs[0]
    each = [f"{shown(name)} ({where[name]})" if where[name] else shown(name) for name in (one, other)]
    more = f" ({len(pairs) - 1} more such pairs)" if pairs[1:] else ""
    raise InputError(f"{source}: {what} {each[0]} and {each[1]} differ in spelling only{more}; {way_out(one, other)}")


def refuse_other_spelling(
    what: str, ours: Mapping[str, str], source: str, other_what: str, theirs: Mapping[str, str], other_source: str
) -> None:
    """`InputError` where an id of one table is no id of the other, but one there differs in its spelling only.

    `ours`, `theirs`: id -> `line 3`, or "".
    """
    pairs = clashes([*theirs, *ours])
    across = [(b, a) if a in theirs else (a, b) for a, b in pairs if (a in theirs) != (b in theirs)]
    if not across:
        return
    one, other = across[0]
    here = f"{source}, {ours[one]}" if ours[one] else source
    there = f"{other_source}, {theirs[other]}" if theirs[other] else other_source
    more = f" ({len(across) - 1} more such pairs)" if across[1:] else ""
    raise InputError(
        f"{here}: {what} {shown(one)} and {other_what} {shown(other)} of {there} differ in spelling only{more}; "
        f"{way_out(one, other)}"
    )


# --- classes ----------------------------------------------------------------------------------------------------------


def class_name(text: str) -> str:
    """The canonical text; a whole number that a table program wrote as 1.0, 01 or 1e+00 is 1."""
    name = canonical(text)
    if number := _WHOLE.fullmatch(name):
        return str(int(number[1] + number[2]))
    if _ROUNDED.fullmatch(name) and name.isascii() and folded(name).isdigit():  # 1e+05 is 100000
        return folded(name)
    return name


@dataclass(frozen=True)
class Classes:
    """A column of classes, read."""

    names: tuple[str | None, ...]
    """Of each cell its class; None where it is missing."""
    words: Mapping[str, int]
    """Which words (not blank cells) were taken for missing -> in how many cells."""
    notes: tuple[str, ...]
    """What was decided about words that could mean either, one sentence each."""

    def missing_words(self) -> str:
        """` ('NA' stands for none; …)`, or "" where only blank cells are missing."""
        names = ", ".join(map(repr, self.words))
        return f" ({names} stands for none; --keep makes a class of it)" if names else ""


def read_classes(
    cells: Sequence[tuple[str, str]], column: str, source: str, keep: Sequence[str] | None = None
) -> Classes:
    """The classes of a column; `cells`: text and place (`line 3`) of each. `keep`: classes that the user has named.

    `InputError`: two classes that differ in their spelling only, where `keep` does not have both.
    """
    kept = {class_name(name) for name in keep or ()}
    found = [class_name(text) for text, _ in cells]
    names = [None if is_missing(name) and name not in kept else name for name in found]
    others = {name for name in names if name is not None and name.lower() not in _WORDS}
    if others and all(_is_number(name) for name in others):
        names = [None if n is not None and n.lower() in _WORDS and n not in kept else n for n in names]
    where: dict[str, str] = {}
    for name, (_, place) in zip(names, cells, strict=True):
        if name is not None:
            refuse_control_characters(name, column, f"{source}, {place}")
            where.setdefault(name, place)
    if pairs := [pair for pair in clashes(where) if not set(pair) <= kept]:
        refuse_clashes(f"{column}s", {name: where[name] for name in pairs[0]}, source)
    words = Counter(text for text, name in zip(found, names, strict=True) if name is None and text)
    sure = sorted(name for name in where if name.lower() not in _WORDS)
    keep_words = f", or name the classes: --keep {' '.join(sure[:5])}{' …' * (len(sure) > 5)}" if len(sure) > 1 else ""
    doubtful = Counter(n for n in names if n is not None and n.lower() in _WORDS and keep is None)
    notes = [
        f"{source}: {n} rows have the {column} {word!r}, which is taken for a class; if it means that there is none, "
        f"empty those cells{keep_words}"
        for word, n in doubtful.items()
    ]
    notes += [
        f"{source}: {n} rows have the {column} {word!r}, which stands for none; if it is a class, name it in --keep"
        for word, n in words.items()
    ]
    return Classes(tuple(names), words, tuple(notes))


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[+-]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?", name) is not None
