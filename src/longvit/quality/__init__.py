"""Quality of a slide: focus, folds, bubbles and pen by classical measures, each in one file.

A measure takes a low-resolution overview of the slide, or full-resolution probes for focus. Each file begins with its
thresholds and their origin.
"""
