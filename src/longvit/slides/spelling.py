"""Spelling of names: Unicode form, and a folded form without everything that programs and keyboards change.

`data/identity.py` decides which names in tables are one patient or slide.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_DOUBLE_QUOTES = '"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033'
_QUOTES = _DOUBLE_QUOTES + "'`\u00b4\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u02b9\u02bc"
_LOOKALIKES = dict(zip("авекмнорстухѕіјαεικνορτυχ", "abekmhopctyxsijaeiknoptux", strict=True))
"""Cyrillic and Greek small letters that look like Latin ones, at least as capitals."""


def composed(text: str) -> str:
    """Unicode form NFC: `u` and a combining diaeresis (as a Mac writes it) become `ü`."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class _Plain(dict[int, str]):
    """Table of characters and their folded form, filled on demand."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character.isspace():
            plain = " "
        elif category == "Pd" or character in "_\u2212\u02d7\u2043":
            plain = "-"
        elif category in ("Cf", "Cc") or _varies(code):
            plain = ""
        elif character in _QUOTES:
            plain = '"' if character in _DOUBLE_QUOTES else "'"
        elif category == "Nd":
            plain = str(unicodedata.decimal(character))
        else:
            plain = character
        self[code] = plain
        return plain


def _varies(code: int) -> bool:
    """True for invisible characters: variation selectors, joiners, fillers."""
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or code in (0x034F, 0x115F, 0x1160, 0x3164)


_PLAIN = _Plain()
_SAME = str.maketrans(_LOOKALIKES)


@lru_cache(maxsize=2**17)
def folded(text: str) -> str:
    """Folded form of a name; two names with the same form differ in spelling only.

    Removed are capitals, leading zeros, a final `.0`, needless blanks and a final dot. Dashes, quotes, full-width
    forms, digits of other scripts, and Cyrillic and Greek letters that look Latin are unified. Invisible characters are
    dropped.
    """
    plain = text.translate(_PLAIN)
    if not plain.isascii():
        plain = unicodedata.normalize("NFKC", plain).translate(_PLAIN)
    plain = plain.casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKC", plain).translate(_SAME)
    plain = re.sub(r" *-[ -]*", "-", re.sub(r" +", " ", plain))
    plain = re.sub(r"(?<=[^\w -]) | (?=[^\w -])", "", plain)  # a (1) = a(1)
    plain = plain.removeprefix("=").strip("'\" ").rstrip(" .")
    if number := re.fullmatch(r"\+?0*([0-9]+)(?:[.,]0+)?", plain):
        return number[1]
    if number := re.fullmatch(r"\+?([0-9]+)(?:[.,]([0-9]+))?e\+([0-9]{1,2})", plain):  # 1.2e+05
        digits, fraction, exponent = number[1], number[2] or "", int(number[3])
        if len(fraction) <= exponent:
            return (digits + fraction + "0" * (exponent - len(fraction))).lstrip("0") or "0"
    plain = re.sub(r"(?<=[^\W\d_])[ -](?=[0-9])|(?<=[0-9])[ -](?=[^\W\d_])", "", plain)  # P 01, P-01 = P01
    return re.sub(r"(?<![0-9])(?<![0-9]\.)0+(?=[0-9])", "", plain) or text
