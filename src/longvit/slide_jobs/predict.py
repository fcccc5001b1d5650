"""Slide predictions of a fine-tuned model, in the columns of its task.

OUT/predictions.csv         slide_id, path, the columns of the model's task (`Task.prediction_columns`), n_bad_tiles,
                            mpp, mpp_source
OUT/slides/<slide_id>.json  the same with its provenance: slide, canvas, weights
OUT/heatmaps/<slide_id>.*   heat maps of the patch contributions, in the wanted formats (`longvit.heatmaps.formats`)
OUT/top, bottom, patches.csv  top and bottom patches over all slides, with the format `patches`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.data.slide_list import ListedSlide
from longvit.errors import InputError
from longvit.figure import not_drawn
from longvit.files import file_stem, printable
from longvit.heatmaps import formats as heatmap_files
from longvit.heatmaps.formats import HeatMapSettings
from longvit.slide_jobs.job import ModelJob, config_of, read_record, write_table
from longvit.slide_jobs.reading import ReadSettings
from longvit.slide_jobs.run import JobSpec, RunSettings, SlideJobsResult, model_folder, model_for, run

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from longvit.interpret import Contributions
    from longvit.model.longvit import LongViT, LongViTConfig
    from longvit.slides.canvas import Canvas

FOLDER = "slides"
TABLE = "predictions.csv"


def predict_slides(
    slides: Sequence[ListedSlide],
    out_dir: str | Path,
    model: LongViT | str | Path,
    read_settings: ReadSettings | None = None,
    run_settings: RunSettings | None = None,
    *,
    pictures: bool = False,
    heatmaps: Sequence[str] = (),
    top_k: int = 10,
    heatmap_of: str | None = None,
) -> SlideJobsResult:
    """Predicts slides with a fine-tuned model and writes `predictions.csv`.

    Subtyping: a probability per class (they sum to 1) and the most probable class. Survival: the risk (higher: earlier)
    and the probability of no event up to each inner edge of the bins. docs/tasks.md has the columns of every task.

    - `model`: a LongViT or its folder.
    - `pictures`: also writes a PNG per slide with the contribution of each patch to the highest output, or to the risk
      (ordinal: to the cut that decides).
    - `heatmaps`: names of `longvit.heatmaps.formats.FORMATS`; files of the same contributions for other programs.
    - `heatmap_of`: class, label column or cut (`above 2`) of plots and heat maps, in place of the highest one.
    - `top_k`: number of patches at each end that are marked in the GeoJSON and written as images.

    A slide that fails becomes a row of `problems.csv`, as does a plot that cannot be drawn (stage `picture`) or a heat
    map that cannot be written (stage `heatmap`). Raises `InputError` for a model without a head, for an unknown format,
    or if `out_dir` cannot be written to.

    >>> import longvit
    >>> slides = longvit.find_slides(["examples/CMU-1-Small-Region.svs"])
    >>> names = ("benign", "tumour")
    >>> model = longvit.create_model("longvit_tiny_stem_patch32", True, num_classes=2, class_names=names)
    >>> result = longvit.predict_slides(slides, "predictions", model)
    >>> list(result.records[0]["prediction"])
    ['prob_benign', 'prob_tumour', 'prediction']
    """
    from longvit.tasks.task import task_class

    heat_maps = HeatMapSettings.parsed(heatmaps, top_k)
    config = config_of(model)
    if config.num_classes < 1:
        raise InputError("this model has no classes; fine-tune it with `longvit train`, or use `longvit embed`")
    output = None if heatmap_of is None else output_index(config, heatmap_of)
    out_dir = Path(out_dir)
    read_settings, run_settings = read_settings or ReadSettings(), run_settings or RunSettings()
    parameters = {
        "model": model_folder(model, out_dir, run_settings),
        "pictures": pictures,
        "heatmaps": list(heat_maps.formats),
        "top_k": heat_maps.top_k,
        **({} if output is None else {"output": output}),
    }

    def build() -> PredictJob:
        return PredictJob(
            model_for(model, run_settings),
            out_dir / FOLDER,
            read_settings,
            pictures=pictures,
            heat_maps=heat_maps,
            output=output,
        )

    job = JobSpec(PredictJob.verb, out_dir / FOLDER, parameters)
    result = run(build, job, slides, out_dir, read_settings, run_settings)
    prediction_columns = task_class(config.task).prediction_columns(class_names(config))
    columns = ["slide_id", "path", *prediction_columns, "n_bad_tiles", "mpp", "mpp_source"]
    rows = [
        {
            "slide_id": record["slide_id"],
            "path": record["path"],
            **record["prediction"],
            "n_bad_tiles": record["n_bad_tiles"],
            "mpp": record["mpp"]["x"] if record["mpp"] else "",
            "mpp_source": record["mpp"]["source"] if record["mpp"] else "",
        }
        for record in result.records
    ]
    write_table(out_dir / TABLE, columns, rows)
    if "patches" in heat_maps.formats:
        from longvit.heatmaps.cohort_patches import write_cohort_patches

        write_cohort_patches(result.records, out_dir / heatmap_files.FOLDER, out_dir, heat_maps.top_k)
    return result


def output_index(config: LongViTConfig, name: str) -> int:
    """Index of the output with a title. `InputError` lists the titles."""
    from longvit.tasks.task import task_class

    titles = [meaning.title for meaning in task_class(config.task).meanings(class_names(config))]
    if name not in titles:
        raise InputError(f"heat map of {name!r}: this model has {', '.join(titles)}")
    return titles.index(name)


def class_names(config: LongViTConfig) -> tuple[str, ...]:
    """Class names; the class numbers if the config holds no names."""
    return config.class_names or tuple(str(i) for i in range(config.num_classes))


class PredictJob(ModelJob):
    """Prediction job: slide -> canvas -> tokens -> prediction, and a plot of the contributions."""

    verb = "predict"

    def __init__(
        self,
        model: LongViT,
        folder: str | Path,
        settings: ReadSettings | None = None,
        *,
        pictures: bool = False,
        heat_maps: HeatMapSettings = HeatMapSettings(),
        output: int | None = None,
    ) -> None:
        super().__init__(model, folder, settings)
        self.pictures, self.heat_maps, self.output = pictures, heat_maps, output
        if output is not None:
            self.digest_inputs = {**self.digest_inputs, "output": output}
        self.heat_map_folder = self.folder.parent / heatmap_files.FOLDER

    def plot_path(self, slide_id: str) -> Path:
        """Path of the slide's contributions plot."""
        return self.folder / f"{file_stem(slide_id)}.png"

    def is_finished(self, slide_id: str, digest: str) -> bool:
        """True if the record has this digest, and the wanted plot and heat maps were written."""
        if not super().is_finished(slide_id, digest):
            return False
        record = read_record(self.record_path(slide_id))
        if self.pictures and not (self.plot_path(slide_id).exists() and record.get("picture")):
            return False
        return heatmap_files.are_written(record, self.heat_map_folder, self.heat_maps)

    def compute(self, listed: ListedSlide, digest: str, canvas: Canvas) -> dict[str, Any]:
        from longvit.interpret import draw, predicted_contributions, tokens_of
        from longvit.tasks.task import task_class

        names, task = class_names(self.model.config), task_class(self.model.config.task)
        tokens_1ND, _ = tokens_of(self.model, canvas)
        logits = logits_of(self.model, tokens_1ND)
        plot_problems: list[str] = []
        heat_maps: dict[str, Any] = {}
        if self.pictures or self.heat_maps.formats:
            contributions = predicted_contributions(self.model, canvas, self.output, tokens_1ND=tokens_1ND)
        if self.pictures:
            what = "predicted " if task.outputs_are_classes and self.output is None else ""
            title = f"{printable(listed.slide_id)}: {what}{contributions.class_name}"
            with not_drawn() as plot_problems:
                draw(canvas, contributions, self.plot_path(listed.slide_id), title=title)
        if self.heat_maps.formats:
            heat_maps = self.write_heat_maps(listed, canvas, contributions)
        return {
            "task": task.name,
            "prediction": dict(zip(task.prediction_columns(names), task.prediction_cells(logits, names), strict=True)),
            "picture": self.plot_path(listed.slide_id).name if self.pictures and not plot_problems else None,
            **({"picture_problem": plot_problems[0]} if plot_problems else {}),
            **heat_maps,
        }

    def write_heat_maps(self, listed: ListedSlide, canvas: Canvas, contributions: Contributions) -> dict[str, Any]:
        """Writes the slide's heat maps and returns their entries in the record."""
        from longvit.heatmaps.heat_map import of_contributions
        from longvit.slides.reader import open_slide

        settings = self.request(listed).settings
        heat_map = of_contributions(listed.slide_id, canvas, contributions)
        written = heatmap_files.write_heat_maps(
            heat_map,
            self.heat_map_folder,
            self.heat_maps,
            lambda: open_slide(listed.path, mpp=settings.mpp, reader=settings.reader),
        )
        entry = {"heatmaps": heatmap_files.record_entry(heat_map, written, self.heat_maps)}
        return entry | ({"heatmap_problem": "; ".join(written.problems)} if written.problems else {})


def logits_of(model: LongViT, tokens_1ND: Tensor) -> np.ndarray:
    """The head's float64 outputs (W,) for the tokens of one canvas. Raises `ValueError` if one is not finite."""
    import torch

    with torch.inference_mode():
        logits = model.forward_head(tokens_1ND)[0].float().cpu().double()
    if not torch.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    return logits.numpy()
