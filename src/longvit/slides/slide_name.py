"""Slide names that no table or file system accepts. For one name in two spellings see `spelling.py`."""

from __future__ import annotations

import re

MAX_ID_BYTES = 180
"""Longest slide id. It is part of file names of up to 255 bytes; suffixes of results need the remainder."""


def printable(text: str) -> str:
    """The text with NUL and bytes that are not UTF-8 as `\\x00`, `\\xff`, so that any file can hold it."""
    text = text.replace("\0", "\\x00")
    if text.isascii():
        return text
    # Bytes of a name that are not UTF-8 are lone surrogates U+DC80 … U+DCFF in Python.
    return re.sub("[\ud800-\udfff]", lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", text)


def fault_of_name(slide_id: str, path: str) -> str | None:
    """Reason why no result can be written for this slide id and path, as a clause that follows its name; None if it
    can."""
    if printable(path) != path:
        character = "a NUL character" if "\0" in path else "bytes that are not UTF-8"
        return f"its path holds {character}; rename it"
    if printable(slide_id) != slide_id:
        character = "a NUL character" if "\0" in slide_id else "bytes that are not UTF-8"
        return f"its slide id holds {character}; write another into a column slide_id"
    size_bytes = len(slide_id.encode())
    if size_bytes > MAX_ID_BYTES:
        return (
            f"its slide id is {size_bytes} bytes long, and names of files with it would be too long (at most "
            f"{MAX_ID_BYTES}); list it in a CSV with the columns slide_id,path under a shorter one"
        )
    return None
