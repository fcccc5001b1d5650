"""DINO pretraining from slides: the run from settings to files, and what shows that it learns."""
