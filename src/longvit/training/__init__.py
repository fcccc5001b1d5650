"""One training loop for everything: `loop` (the run), `optim` (AdamW, schedule), `checkpoint` (exact resume)."""
