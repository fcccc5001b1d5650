"""Site check: whether embeddings or predictions show the hospital, and whether the hospital shows the label."""
