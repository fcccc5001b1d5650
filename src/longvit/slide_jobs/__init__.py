"""Jobs on many slides: embeddings, predictions, canvases, tiles, features, quality; resumable, with any workers."""
