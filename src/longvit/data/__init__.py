"""Cohorts and the canvases that training reads: `cohort` (who), `splits` (train, val, test), `datasets` (pixels)."""
