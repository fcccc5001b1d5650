"""User errors: a command prints the text of an `InputError` as a single line and exits with status 2. Out-of-memory
errors of Python, NumPy and torch are recognised here too."""

from __future__ import annotations


class InputError(ValueError):
    """An error in the user's input. Its text is one line with the file, the number and the way out.

    >>> import longvit
    >>> longvit.open_slide("missing.svs")
    Traceback (most recent call last):
    longvit.errors.InputError: missing.svs: no such file...
    """


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error, or its cause, reports exhausted memory.

    Covers `MemoryError` of Python and NumPy, torch's errors on GPU and CPU, and libraries that cannot be loaded for
    lack of address space.
    """
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return False
        if _is_memory_error(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_memory_error(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        return True
    text = str(error)
    if isinstance(error, RuntimeError):
        return "can't allocate memory" in text or "bad_alloc" in text
    is_loading = isinstance(error, ImportError | OSError)
    return is_loading and ("failed to map segment" in text or "Cannot allocate memory" in text)


def one_line(error: object, most: int | None = None) -> str:
    """Text of an error on one line, at most `most` characters; the name of its type where it has no text."""
    text = " ".join("".join(c if c.isprintable() or _is_surrogate(c) else " " for c in str(error)).split())
    return text[:most] or type(error).__name__


def describe_error(error: BaseException, most: int | None = None) -> str:
    """An error on one line: an `InputError` as it is, any other with the name of its type."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if not str(error).strip():
        return type(error).__name__
    return f"{type(error).__name__}: {one_line(error, most)}"


def _is_surrogate(character: str) -> bool:
    """True for a byte of a file name that is not UTF-8."""
    return "\ud800" <= character <= "\udfff"
