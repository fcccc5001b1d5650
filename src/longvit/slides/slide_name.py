"""Names of slides that no table or file system takes. For one name in two spellings see `spelling.py`."""

from __future__ import annotations

import re

MAX_ID_BYTES = 180
"""A slide id names files, whose names hold 255 bytes; the results' own parts of a name need the rest."""


def printable(text: str) -> str:
    """The text with NUL, and bytes that are no UTF-8, as `\\x00`, `\\xff`; it can be written to any file."""
    text = text.replace("\0", "\\x00")
    if text.isascii():
        return text
    # Bytes of a name that are no UTF-8 are lone surrogates U+DC80 … U+DCFF in Python.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", text)


def fault_of_name(slide_id: str, path: str) -> str | None:
    """Why no result can be written for a slide of this id and path, in words that follow its name; None: it can."""
    if printable(path) != path:
        what = "a NUL character" if "\0" in path else "bytes that are not UTF-8"
        return f"its path holds {what}; rename it"
    if printable(slide_id) != slide_id:
        what = "a NUL character" if "\0" in slide_id else "bytes that are not UTF-8"
        return f"its slide id holds {what}; write another into a column slide_id"
    size_bytes = len(slide_id.encode())
    if size_bytes > MAX_ID_BYTES:
        return (
            f"its slide id is {size_bytes} bytes long, and names of files with it would be too long (at most "
            f"{MAX_ID_BYTES}); list it in a CSV with the columns slide_id,path under a shorter one"
        )
    return None
