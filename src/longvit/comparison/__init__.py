"""Every system that the paper compares with, on the same folds, seeds and figures: one table."""
