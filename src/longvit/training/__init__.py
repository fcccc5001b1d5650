"""Training of every model: `loop` (the run), `optim` (AdamW, schedule), `checkpoint` (exact resume), `run_folder`."""
