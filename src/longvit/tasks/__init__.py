"""Tasks: labels, losses, metrics and columns; a file each, listed in `catalogue`."""
