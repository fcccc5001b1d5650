"""Identity of names in tables: whether two texts are the same patient, slide or class, and which cells are missing.

`canonical` is the form in which ids are compared: without outer blanks, in the Unicode form NFC. Two ids that differ,
but not in their folded form (`slides/spelling.py`: capitals, leading zeros, `.0`, dashes, invisible characters …), are
never assumed equal or different: `refuse_clashes` reports both.

A blank cell is missing, and so are the marks that programs write for it: nan, NA, N/A, <NA>, NaT, #N/A. The words
`none` and `null` are missing among numbers. In a column of words they are a class, as in a grade `none, low, high`. A
class that the user names (`--keep`) is always a class.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from longvit.errors import InputError
from longvit.slides.spelling import composed, folded

_MISSING_MARKS = frozenset({"nan", "na", "n/a", "<na>", "nat", "#n/a", "#na", "1.#qnan", "-nan"})
_MISSING_WORDS = frozenset({"none", "null"})
_WHOLE = re.compile(r"(-?)0*([0-9]{1,18})(?:[.,]0*)?")
_ROUNDED = re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+")
_FORMULA = re.compile(r"[=@]|[+-](?=.*[(|!])|[+-][0-9.]+[-+*/^&]")


# --- ids --------------------------------------------------------------------------------------------------------------


def canonical(text: str) -> str:
    """An id or a class in the form in which it is compared: no outer blanks of any kind, no byte order mark, Unicode
    form NFC."""
    return composed(text).strip().strip("\ufeff").strip()


def is_missing(text: str) -> bool:
    """True for a blank cell, or a mark that a program writes for one (see the top of this file)."""
    return text.strip().lower() in _MISSING_MARKS or not canonical(text)


def is_missing_number(text: str) -> bool:
    """True for a missing cell in a column of numbers, where the words none and null are missing too."""
    return is_missing(text) or text.strip().lower() in _MISSING_WORDS


def read_id(text: str, column: str, where: str) -> str:
    """Canonical text of a cell with a patient or a slide; "" where it is missing.

    Raises `InputError` for a control character or line break, and for a number that a spreadsheet has rounded
    (1.2E+11). The words none, null and NA are refused too, since they may be a name or a mark. `where`: `cohort.csv,
    line 3`.
    """
    name = canonical(text)
    if is_missing(name) and name.lower() not in ("na", "n/a"):
        return ""
    if is_missing_number(name):
        raise InputError(
            f"{where}: {column} is {name!r}: a name, or a missing value? Empty the cell, or write another name"
        )
    refuse_control_characters(name, column, where)
    if _ROUNDED.fullmatch(name):
        raise InputError(
            f"{where}: {column} is {name!r}, a long number that a spreadsheet has rounded; "
            f"export the table again with this column as text"
        )
    return name


def refuse_control_characters(text: str, column: str, where: str) -> None:
    """Raises `InputError` for a line break (often a quote that is not closed), a terminal escape and the like."""
    if bad := next((c for c in text if unicodedata.category(c) == "Cc"), None):
        reason = "a line break; is a quote not closed?" if bad in "\r\n" else f"the control character U+{ord(bad):04X}"
        raise InputError(f"{where}: {column} {text[:40]!r} has {reason}; remove it")


def formula_note(cells: Iterable[tuple[str, str]], source: str) -> tuple[str, ...]:
    """A note where a spreadsheet would run an id or a class (`cells`: text and place) as a formula, else none.

    They are written to the results unchanged, since quoting would turn them into other names.
    """
    formulas = [(text, place) for text, place in cells if _FORMULA.match(text)]
    if not formulas:
        return ()
    more = f" ({len(formulas) - 1} more such cells)" if formulas[1:] else ""
    return (
        f"{source}, {formulas[0][1]}: {formulas[0][0]!r} is a formula for a spreadsheet{more}; results keep it: "
        f"rename it, or import them as text",
    )


def clashes(ids: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different ids with the same folded form, each later id with the first of its form."""
    first: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(ids):
        if (other := first.setdefault(folded(name), name)) != name:
            pairs.append((other, name))
    for form, name in list(first.items()):
        if " " in form:
            others = {first.get(other, name) for other in _without_blanks(form)} - {name}
            pairs += [(other, name) for other in sorted(others)]
    return pairs


def _without_blanks(form: str) -> tuple[str, ...]:
    """Forms that a form with inner blanks may have elsewhere. Between digits a blank is significant: P1 2 is not
    P12."""
    dashed = form.replace(" ", "-")
    if re.search(r"[0-9] [0-9]", form) and not re.fullmatch(r"[0-9]{1,3}(?: [0-9]{3})+", form):
        return (dashed,)
    return dashed, form.replace(" ", "")


def spelled_like(name: str, others: Iterable[str]) -> str | None:
    """An id of `others` that differs from `name` in spelling only; a suggestion, not a match."""
    form = folded(name)
    return next((other for other in others if other != name and folded(other) == form), None)


def shown(name: str) -> str:
    """An id for a message; invisible or ambiguous characters are written out."""
    text = repr(name).replace("  ", "␣␣")  # a message on one line has no two blanks
    return text if repr(name) == ascii(name) else f"{text} ({ascii(name)[1:-1]})"


def first_places(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Id -> its first place (`line 3`, or "" where unknown), in the given order."""
    places: dict[str, str] = {}
    for name, place in names:
        places.setdefault(name, place)
    return places


def way_out(one: str, other: str) -> str:
    """Advice on how to unify two spellings."""
    if folded(one).isdigit() and one.isascii() and other.isascii():
        return "a table program converted one of them to a number: export that column as text, and write one spelling"
    return "write one spelling everywhere, or rename one if they differ"


def refuse_clashes(what: str, where: Mapping[str, str], source: str) -> None:
    """Raises `InputError` where two ids differ in spelling only; `where`: id -> `line 3`, or "" where unknown."""
    if not (pairs := clashes(where)):
        return
    one, other = pairs[0]
    listed = [f"{shown(name)} ({where[name]})" if where[name] else shown(name) for name in (one, other)]
    more = f" ({len(pairs) - 1} more such pairs)" if pairs[1:] else ""
    raise InputError(
        f"{source}: {what} {listed[0]} and {listed[1]} differ in spelling only{more}; {way_out(one, other)}"
    )


def refuse_other_spelling(
    what: str,
    places: Mapping[str, str],
    source: str,
    other_what: str,
    other_places: Mapping[str, str],
    other_source: str,
) -> None:
    """Raises `InputError` where an id of one table differs from an id of the other in spelling only.

    `places`, `other_places`: id -> `line 3`, or "".
    """
    pairs = clashes([*other_places, *places])
    across = [(b, a) if a in other_places else (a, b) for a, b in pairs if (a in other_places) != (b in other_places)]
    if not across:
        return
    one, other = across[0]
    place = f"{source}, {places[one]}" if places[one] else source
    other_place = f"{other_source}, {other_places[other]}" if other_places[other] else other_source
    more = f" ({len(across) - 1} more such pairs)" if across[1:] else ""
    raise InputError(
        f"{place}: {what} {shown(one)} and {other_what} {shown(other)} of {other_place} differ in spelling only{more}; "
        f"{way_out(one, other)}"
    )


# --- classes ----------------------------------------------------------------------------------------------------------


def class_name(text: str) -> str:
    """Canonical text of a class; a whole number that a table program wrote as 1.0, 01 or 1e+00 is 1."""
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
    """Class of each cell; None where it is missing."""
    words: Mapping[str, int]
    """Words (not blank cells) that were read as missing -> number of cells."""
    notes: tuple[str, ...]
    """Decisions about ambiguous words, one sentence each."""

    def missing_words(self) -> str:
        """` ('NA' means missing; …)`, or "" where only blank cells are missing."""
        names = ", ".join(map(repr, self.words))
        return f" ({names} means missing; --keep makes it a class)" if names else ""


def read_classes(
    cells: Sequence[tuple[str, str]], column: str, source: str, keep: Sequence[str] | None = None
) -> Classes:
    """Classes of a column; `cells`: text and place (`line 3`) of each. `keep`: classes that the user named.

    Raises `InputError` for two classes that differ in spelling only, unless `keep` has both.
    """
    kept = {class_name(name) for name in keep or ()}
    class_names = [class_name(text) for text, _ in cells]
    names = [None if is_missing(name) and name not in kept else name for name in class_names]
    others = {name for name in names if name is not None and name.lower() not in _MISSING_WORDS}
    if others and all(_is_number(name) for name in others):
        names = [None if n is not None and n.lower() in _MISSING_WORDS and n not in kept else n for n in names]
    where: dict[str, str] = {}
    for name, (_, place) in zip(names, cells, strict=True):
        if name is not None:
            refuse_control_characters(name, column, f"{source}, {place}")
            where.setdefault(name, place)
    if pairs := [pair for pair in clashes(where) if not set(pair) <= kept]:
        refuse_clashes(f"{column}s", {name: where[name] for name in pairs[0]}, source)
    words = Counter(text for text, name in zip(class_names, names, strict=True) if name is None and text)
    unambiguous = sorted(name for name in where if name.lower() not in _MISSING_WORDS)
    keep_words = (
        f", or name the classes: --keep {' '.join(unambiguous[:5])}{' …' * (len(unambiguous) > 5)}"
        if len(unambiguous) > 1
        else ""
    )
    ambiguous = Counter(n for n in names if n is not None and n.lower() in _MISSING_WORDS and keep is None)
    notes = [
        f"{source}: {n} rows have the {column} {word!r}, which is read as a class; if it means missing, "
        f"empty those cells{keep_words}"
        for word, n in ambiguous.items()
    ]
    notes += [
        f"{source}: {n} rows have the {column} {word!r}, which means missing; if it is a class, name it in --keep"
        for word, n in words.items()
    ]
    return Classes(tuple(names), words, tuple(notes))


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[+-]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?", name) is not None
