"""Jobs on many slides: embeddings, predictions, canvases, tiles, features; resumable, with one or many workers."""
