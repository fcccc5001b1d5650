"""Proposal of the settings of a first training, from the cohort, a few of its slides and this machine."""
