"""Comparison of systems on the same folds, seeds and metrics, with LongViT beside the paper's baselines."""
