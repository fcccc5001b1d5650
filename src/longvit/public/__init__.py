"""Public slides by name: selection from an archive's index, downloads within a disk bound, canvases and features."""
