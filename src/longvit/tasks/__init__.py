"""What a model is fine-tuned for: `finetune` (the run), `subtyping` (the task), `metrics`, `controls`, `pictures`."""
