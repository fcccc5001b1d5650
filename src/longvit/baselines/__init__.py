"""The systems that LongViT is compared with, each in one file that reads like its paper; `catalogue` lists them."""
