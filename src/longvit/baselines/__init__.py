"""Baseline systems for the comparison with LongViT, each in one file that follows its paper; `catalogue` lists them."""
