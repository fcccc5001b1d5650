"""Quality of a slide: focus, folds, bubbles and pen by classical measures, each in one file.

A measure takes a low-resolution overview of the slide, or full-resolution probes for focus. Its thresholds stand at the
top of its file, with their origin.
"""
