"""Random regions of slides and their DINO crops."""
