"""Fine-tuning: one run, cross-validation, evaluation."""
