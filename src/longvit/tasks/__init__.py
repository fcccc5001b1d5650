"""Tasks: labels, losses, metrics and columns; `subtyping` and `survival`."""
