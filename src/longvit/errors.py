"""The one error that a user's input can cause: a command prints its text as a single line and exits with 2."""

from __future__ import annotations


class InputError(ValueError):
    """A user's fault: the text names the file, the number and the way out, on one line."""
