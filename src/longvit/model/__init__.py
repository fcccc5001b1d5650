"""LongViT and the models that share its encoder."""
