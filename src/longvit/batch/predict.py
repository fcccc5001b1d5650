"""Class probabilities for slides, with a fine-tuned model.

OUT/predictions.csv         slide_id, path, prediction, prob_<class> …, n_bad_tiles, mpp, mpp_source
OUT/slides/<slide_id>.json  the same with where it came from: slide, canvas, weights
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.batch.work import (
    BatchResult,
    Reading,
    ReadSettings,
    SlideJob,
    read_record,
    run,
    write_table,
)
from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.interpret import class_contributions, draw, tokens_of

if TYPE_CHECKING:
    from torch import Tensor

    from longvit.model.longvit import LongViT
    from longvit.slides.canvas import Canvas

FOLDER = "slides"
TABLE = "predictions.csv"


def predict_slides(
    model: LongViT,
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    settings: ReadSettings | None = None,
    *,
    pictures: bool = False,
) -> BatchResult:
    """Writes `predictions.csv`: a probability per class (they sum to 1) and the likeliest class of every slide.

    `pictures`: also a PNG per slide with what each patch contributes to its likeliest class.

    Raises `InputError` for a model without head, and where the folder cannot be written to; a slide that fails
    becomes a row of `problems.csv`.
    """
    if model.config.num_classes < 2:
        raise InputError("this model has no classes; fine-tune it with `longvit train`, or use `longvit embed`")
    out_dir = Path(out_dir)
    job = PredictJob(model, out_dir / FOLDER, settings, pictures=pictures)
    result = run(job, slides, out_dir)
    names = class_names(model)
    columns = ["slide_id", "path", "prediction", *(f"prob_{n}" for n in names), "n_bad_tiles", "mpp", "mpp_source"]
    rows = [
        {
            "slide_id": record["slide_id"],
            "path": record["path"],
            "prediction": record["prediction"],
            **{f"prob_{name}": f"{record['probabilities'][name]:.9g}" for name in names},
            "n_bad_tiles": record["n_bad_tiles"],
            "mpp": record["mpp"]["x"] if record["mpp"] else "",
            "mpp_source": record["mpp"]["source"] if record["mpp"] else "",
        }
        for record in result.records
    ]
    write_table(out_dir / TABLE, columns, rows)
    return result


def class_names(model: LongViT) -> tuple[str, ...]:
    """The classes by name; by number where the model does not know their names."""
    return model.config.class_names or tuple(str(i) for i in range(model.config.num_classes))


class PredictJob(SlideJob):
    """Slide -> canvas -> tokens -> probabilities, and the picture."""

    verb = "predict"

    def __init__(
        self, model: LongViT, folder: str | Path, settings: ReadSettings | None = None, *, pictures: bool = False
    ) -> None:
        super().__init__(model, folder, settings)
        self.pictures = pictures

    def picture_path(self, slide_id: str) -> Path:
        """Where the slide's picture stands."""
        return self.folder / f"{slide_id}.png"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """The record is of this digest; with pictures, its picture is too."""
        if not super().is_finished(slide_id, digest):
            return False
        return not self.pictures or (
            self.picture_path(slide_id).exists() and bool(read_record(self.record_path(slide_id)).get("picture"))
        )

    def compute(self, listed: ListedSlide, reading: Reading, canvas: Canvas) -> dict[str, Any]:
        names = class_names(self.model)
        tokens_1ND, _ = tokens_of(self.model, canvas)
        probabilities = probabilities_of(self.model, tokens_1ND)
        likeliest = max(range(len(names)), key=probabilities.__getitem__)
        if self.pictures:
            contributions = class_contributions(self.model, canvas, likeliest, tokens_1ND=tokens_1ND)
            title = f"{listed.slide_id}: predicted {names[likeliest]}"
            draw(canvas, contributions, self.picture_path(listed.slide_id), title=title)
        return {
            "prediction": names[likeliest],
            "probabilities": dict(zip(names, probabilities, strict=True)),
            "picture": f"{listed.slide_id}.png" if self.pictures else None,
        }


def probabilities_of(model: LongViT, tokens_1ND: Tensor) -> list[float]:
    """The softmax of the logits of one canvas's tokens; `ValueError` where they are not finite."""
    import torch

    with torch.inference_mode():
        logits = model.forward_head(tokens_1ND)[0].float().cpu().double()
    if not torch.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    values: list[float] = logits.softmax(0).tolist()
    return values
