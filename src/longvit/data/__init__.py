"""Cohorts and the canvases that training reads: `cohort` (slides and labels), `splits` (train, val, test), `datasets`
(pixels)."""
