"""Self-distillation without labels (DINO; Caron et al. 2021, arXiv 2104.14294) of a LongViT: the mathematics only."""
