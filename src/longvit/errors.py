"""The one error that a user's input can cause: a command prints its text as a single line and exits with 2.
Beside it, how memory that is not there shows itself: each library has its own error for that."""

from __future__ import annotations


class InputError(ValueError):
    """A user's fault: the text names the file, the number and the way out, on one line.

    >>> import longvit
    >>> longvit.open_slide("missing.svs")
    Traceback (most recent call last):
    longvit.errors.InputError: missing.svs: no such file...
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for which there is not: Python's and NumPy's MemoryError, torch's
    errors on a GPU and on the CPU, a library that cannot be loaded for want of address space."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return False
        if _is_for_memory(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_for_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        return True
    text = str(error)
    if isinstance(error, RuntimeError):
        return "can't allocate memory" in text or "bad_alloc" in text
    is_loading = isinstance(error, ImportError | OSError)
    return is_loading and ("failed to map segment" in text or "Cannot allocate memory" in text)
