"""Viewer in the browser: slides in deep zoom with heat map, prediction and notes, one loader per kind of run."""
