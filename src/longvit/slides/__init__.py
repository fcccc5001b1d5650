"""Slides: pixels, levels, micrometres; no torch. Start at `reader.open_slide`, then `canvas.canvas`."""
