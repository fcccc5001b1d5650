"""Jobs on many slides: embeddings, predictions, canvases, tiles, features, quality; resumable, with one or many workers."""
