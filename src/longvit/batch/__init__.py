"""Many slides: one vector each (`embed_slides`) or class probabilities (`predict_slides`), resumable."""

from longvit.batch.embed import embed_slides
from longvit.batch.predict import predict_slides
from longvit.batch.work import BatchResult, ReadSettings

__all__ = ["BatchResult", "ReadSettings", "embed_slides", "predict_slides"]
