"""Tasks that need the whole slide: synthetic slides whose class is in composition or place alone, and systems on them.

    python benchmarks/whole_slide_task.py [--fields drawn colon …] [--tasks border …] [--seeds 0 1 2]
        [--stages 256:64:64:600:5 1024:128:256:48:3] [--out FOLDER] [--save]
    python benchmarks/whole_slide_task.py --quick      # toy size, a minute

A stage is SIDE:SQUARE:BLOCK:PAIRS:EPOCHS, in px, pairs of slides and epochs. Places and two tissues are learned
together, which takes thousands of slides, so LongViT starts with many small slides, then takes fewer large ones.
`arrangement` is learned only where a first stage ends in :2, its number of halves (`SyntheticSettings.halves`).
The last stage is the one that is tested. All stages of a fold have the same training patients. The two slides of a pair
are in one batch (`match_on`): without it the differences between pairs hide those between the classes for long.

The slides are those of `longvit.synthetic`: colours are matched, pairs have the same patients and source, folds are
disjoint by patient. On the same folds:

- `longvit`: LongViT on the whole slide; with `--ablation` also its branches alone: `longvit_local` (the shortest
  segment, undilated) and `longvit_global` (the whole sequence at the highest dilated ratio). All three start from the
  network of the stage before and have their own branches in the last stage, in training and in the test
- `longvit_regions`: the same network on regions of the size of a block, with the label of their slide; the mean of
  their logits
- `mean_pooling`, `attention_mil`: on frozen features of the same network, at its start, a tile per square
- `patch_sampling`: end to end on a random sample of the tiles
- `mean_colour`, `colour_histogram`: the controls, which must be at .5

A row per fields, task and system has the AUC over all folds and seeds, and LongViT's lead with its paired interval
(cases resampled). For LongViT it also has the AUC of the heat map (patch contributions) against the truth. Colon has
one tissue a source, so share and any are left out there. Every trial is resumed with the same --out.

Real fields need ../shared/slides beside the project; drawn ones need nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import longvit
from longvit.comparison.compare import compare
from longvit.comparison.intervals import Round, drawn_means, interval, mean_of_folds
from longvit.comparison.settings import ComparisonSettings
from longvit.data.cohort import Cohort
from longvit.data.cohort_table import read_cohort
from longvit.data.folds import Fold, assign, folds_of_column
from longvit.data.slide_list import find_slides
from longvit.demo import write_region
from longvit.files import write_csv
from longvit.finetuning.crossval import cross_validate, replace_splits
from longvit.finetuning.results import read_logits
from longvit.finetuning.run import finetune
from longvit.finetuning.settings import FinetuneSettings
from longvit.interpret import class_contributions
from longvit.slide_jobs.features import feature_folder, feature_slides
from longvit.slide_jobs.run import RunSettings
from longvit.slides.tiles import TileSettings
from longvit.synthetic import (
    Field,
    SyntheticSettings,
    colour_controls,
    drawn_fields,
    heat_map_auc,
    make_slides,
    match_colours,
    patch_truth,
    read_fields,
    read_truth,
)
from longvit.tasks.task import Predictions, Task, task_class
from side_by_side import HERE, report

SLIDES = HERE.parents[1] / "shared" / "slides"
SOURCES: dict[str, dict[str, Any]] = {
    "oral-scc": {"tumour": "OSCC", "only": {"magnification": "400"}},
    "osteosarcoma": {"tumour": "Viable", "healthy": "Non-Tumor", "reduced": 2},
    "colon": {"tumour": "adenocarcinoma"},
}
ONE_TISSUE_A_SOURCE = "colon"
VARIANTS = ("longvit", "longvit_local", "longvit_global")
ON_FEATURES, ON_PIXELS = ("mean_pooling", "attention_mil"), "patch_sampling"
STAGES = ("256:64:64:600:5", "1024:128:256:48:3")
SYSTEMS = (*VARIANTS, "longvit_regions", *ON_FEATURES, ON_PIXELS, "mean_colour")


class Stage(NamedTuple):
    """Slides of one size: side, square and block in px, pairs, the epochs on them, and the halves of arrangement."""

    side_px: int
    square_px: int
    block_px: int
    pairs: int
    epochs: int
    halves: int = 4


def read_stage(text: str) -> Stage:
    """Stage of SIDE:SQUARE:BLOCK:PAIRS:EPOCHS[:HALVES]."""
    try:
        return Stage(*map(int, text.split(":")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text}: give SIDE:SQUARE:BLOCK:PAIRS:EPOCHS[:HALVES]") from None


@dataclass(frozen=True)
class Study:
    """One task on one set of fields with one seed, at the slides of one stage."""

    folder: Path
    cohort: Cohort
    slides: SyntheticSettings
    finetuning: FinetuneSettings
    smaller: Study | None
    """Study of the stage before, on smaller slides of the same folds."""
    comparison: ComparisonSettings
    tiles: int
    is_last: bool
    variants: tuple[str, ...] = VARIANTS
    test_folds: tuple[str, ...] = ()

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Folds of the column fold, or the chosen ones."""
        folds = folds_of_column(self.cohort)
        return tuple(fold for fold in folds if not self.test_folds or fold.name in self.test_folds)

    @property
    def names(self) -> set[str]:
        """Names of the folds."""
        return {fold.name for fold in self.folds}

    def systems(self) -> list[Round]:
        """Trains every system that is not finished; a round per fold."""
        runs: dict[str, Path] = {}
        for name in self.variants:
            for fold in self.folds:
                self.fine_tune(name, fold.name)
            runs[name] = self.folder / name
        features = self.features()
        for name, systems, epochs, given in (
            ("on_features", ON_FEATURES, 20, ()),
            ("on_pixels", (ON_PIXELS,), self.finetuning.epochs, self.sampling()),
        ):
            settings = replace(self.comparison, systems=systems, epochs=epochs, set=given)
            compare(self.cohort, self.folder / name, self.folds, settings, features=features)
            runs |= {system: self.folder / name / system for system in systems}
        regions = self.region_predictions()
        rounds = []
        for fold in self.folds:
            predictions = {name: self.outputs(run / f"fold_{fold.name}" / "outputs.csv") for name, run in runs.items()}
            control = read_logits(runs["longvit"] / f"fold_{fold.name}" / "controls.csv", self.cohort)
            rounds.append(
                {**predictions, "longvit_regions": regions[fold.name], "mean_colour": control["mean_colour"]["test"]}
            )
        return rounds

    def outputs(self, path: Path) -> Predictions:
        """Predictions of the test slides."""
        return read_logits(path, self.cohort)["model"]["test"]

    def fine_tune(self, variant: str, name: str) -> Path:
        """Folder of the model of the fold of that name, fine-tuned on the stages so far."""
        before = None if self.smaller is None else self.smaller.fine_tune(VARIANTS[0], name)
        (fold,) = (fold for fold in self.folds if fold.name == name)
        folder = self.folder / variant / f"fold_{name}"
        start = self.start(variant, name, before)
        settings = replace(self.finetuning, weights=start, controls=self.is_last and variant == "longvit")
        finetune(assign(replace_splits(self.cohort), fold), folder, settings)
        return folder / "model"

    def start(self, variant: str, name: str = "first", before: Path | None = None) -> Path:
        """Folder of the starting network, with the branches of the variant: `before`, or that of the first stage."""
        folder = self.folder / "start" / f"{variant}_{name}"
        if not (folder / "config.json").exists():
            segments = longvit.segment_schedule((self.slides.side_px // 32) ** 2)
            branches: dict[str, Any] = {
                "longvit": {},
                "longvit_local": {"segment_lengths": segments[:1], "dilated_ratios": (1,)},
                "longvit_global": {"segment_lengths": segments[-1:], "dilated_ratios": (16,)},
            }[variant]
            torch.manual_seed(self.finetuning.seed)
            model = longvit.create_model(self.finetuning.model, **branches)
            if (weights := before or self.finetuning.weights) is not None:
                source = longvit.load_model(weights)
                model = longvit.LongViT(replace(source.config, **branches))
                model.load_state_dict(source.state_dict())
            model.save_pretrained(folder)
        return folder

    def features(self) -> Path:
        """Folder of the frozen features, a tile per square."""
        tiles = TileSettings(tile_px=self.slides.square_px, mpp=self.slides.mpp, min_tissue=0)
        encoder, folder = f"longvit:{self.start('longvit')}", self.folder / "tiles"
        slides = find_slides([self.cohort.source])
        feature_slides(slides, folder, encoder, tiles, run_settings=RunSettings(device=self.finetuning.device))
        return feature_folder(folder, tiles, encoder)

    def sampling(self) -> tuple[str, ...]:
        """Settings of `patch_sampling`: tiles at the slides' resolution."""
        given = {"tiles": self.tiles, "tile_px": self.slides.square_px}
        return tuple(f"{ON_PIXELS}.{name}={value}" for name, value in given.items())

    def region_predictions(self) -> dict[str, Predictions]:
        """Fold -> mean logits over the regions of each test slide."""
        folder = self.folder / "longvit_regions"
        cohort = read_cohort(self.write_regions(folder))
        start = self.start("longvit")
        settings = replace(
            self.finetuning, weights=start, keep_head=False, match_on=None, side_px=self.slides.block_px, controls=False
        )
        folds = folds_of_column(cohort)
        cross_validate(cohort, folder, [fold for fold in folds if fold.name in self.names], settings)
        row_of = {row.slide_id: row for row in self.cohort.rows}
        result = {}
        for fold in self.folds:
            p = read_logits(folder / f"fold_{fold.name}" / "outputs.csv", cohort)["model"]["test"]
            logits = defaultdict(list)
            for name, z in zip(p.names, p.logits, strict=True):
                logits[name.rsplit("-", 1)[0]].append(z)
            rows = tuple(row_of[name] for name in logits)
            result[fold.name] = Predictions(rows, np.array([np.mean(z, axis=0) for z in logits.values()]), float("nan"))
        return result

    def write_regions(self, folder: Path) -> Path:
        """Cuts every slide into regions of block_px: files and a cohort table."""
        path, side = folder / "cohort.csv", self.slides.block_px
        rows = []
        for row in self.cohort.rows:
            with longvit.open_slide(row.path) as slide:
                for number in range(self.slides.blocks**2):
                    name = f"{row.slide_id}-{number}"
                    file = folder / "regions" / f"{name}.tif"
                    if not file.exists():
                        y, x = (side * place for place in divmod(number, self.slides.blocks))
                        write_region(slide.read_region(x, y, 0, side, side), (self.slides.mpp,) * 2, file)
                    rows.append([row.case_id, name, row.label, f"regions/{name}.tif", row.fold])
        if not path.exists():
            write_csv(path, ["case_id", "slide_id", "label", "path", "fold"], rows)
        return path

    def heat_maps(self, variant: str) -> list[float]:
        """AUC of the heat map of every test slide that has patches to find."""
        values = []
        for fold in self.folds:
            model = longvit.load_model(self.folder / variant / f"fold_{fold.name}" / "model").eval()
            for row in assign(replace_splits(self.cohort), fold).split("test"):
                with longvit.open_slide(row.path) as slide:
                    pixels = np.asarray(slide.canvas(self.slides.side_px))
                heat = class_contributions(model, pixels, self.cohort.class_index(row)).per_patch
                mask = read_truth(Path(self.cohort.source).parent / row.extra_columns["truth"], *heat.shape)
                if (truth := patch_truth(self.slides.task, row.label, mask)) is not None:
                    values.append(heat_map_auc(heat, truth))
        return values


def summary(studies: list[Study], **named: Any) -> list[dict[str, Any]]:
    """Rows of one task on one set of fields, over all folds and seeds."""
    rounds, tasks, heat = [], list[Task](), defaultdict(list)
    for study in studies:
        rounds += study.systems()
        for fold in study.folds:
            tasks.append(task_class("subtyping")(assign(replace_splits(study.cohort), fold), study.comparison))
        for variant in study.variants:
            heat[variant] += study.heat_maps(variant)
    draws = drawn_means(rounds, tasks, resamples=1000, seed=0)
    best = mean_of_folds(rounds, tasks, "longvit")
    rows = []
    for name in (name for name in SYSTEMS if name in rounds[0]):
        mean = mean_of_folds(rounds, tasks, name)
        own = interval(mean, draws[name])
        lead = interval(None if best is None or mean is None else best - mean, draws["longvit"] - draws[name])
        row = {**named, "system": name, "auc": _rounded(mean), "interval": [_rounded(own.low), _rounded(own.high)]}
        if name != "longvit":
            row |= {"longvit_lead": _rounded(lead.value), "lead_interval": [_rounded(lead.low), _rounded(lead.high)]}
        if heat[name]:
            row["heat_map_auc"] = _rounded(float(np.nanmean(heat[name])))
        rows.append(row)
    controls = [colour_controls(study.cohort.source)["colour_histogram"] for study in studies]
    rows.append({**named, "system": "colour_histogram", "auc": _rounded(float(np.mean([c.auc for c in controls])))})
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as a table."""
    print(f"{'fields':13}{'task':12}{'system':17}{'AUC (95 %)':21}{'lead of LongViT (95 %)':25}heat map")
    for row in rows:
        auc, lead = (
            "" if row.get(value) is None else f"{row[value]:.3f} {row.get(spread, '')}"
            for value, spread in (("auc", "interval"), ("longvit_lead", "lead_interval"))
        )
        print(f"{row['fields']:13}{row['task']:12}{row['system']:17}{auc:21}{lead:25}{row.get('heat_map_auc', '')}")


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 3)


def fields_of(name: str, square_px: int, patients: int) -> tuple[Field, ...]:
    """Matched fields of a set; SystemExit where the set is absent. `patients`: those of the drawn fields."""
    if name == "drawn":
        return match_colours(drawn_fields(patients=patients, fields=1, side_px=max(96, square_px)))
    if not (SLIDES / name).is_dir():
        raise SystemExit(f"needs the reference material: slides/{name} is not at ../shared")
    return match_colours(read_fields(SLIDES / name / "cohort.csv", **SOURCES[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", nargs="*", default=["drawn", *SOURCES], choices=["drawn", *SOURCES])
    parser.add_argument("--tasks", nargs="*", default=["share", "any", "border", "arrangement"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--stages", nargs="*", type=read_stage, metavar="STAGE", default=[*map(read_stage, STAGES)])
    parser.add_argument("--folds", type=int, default=4, help="of the drawn fields; real ones have theirs")
    parser.add_argument("--test-folds", nargs="*", help="names of the folds to test; default: all")
    parser.add_argument("--ablation", action="store_true", help="also the branches alone")
    parser.add_argument("--weights", help="starting weights; default: random ones")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--tiles", type=int, default=64, help="tiles of a step of patch_sampling")
    parser.add_argument("--model", default="longvit_tiny_stem_patch32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder of the trials, to be resumed; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="toy size: shows that everything runs")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if args.quick:
        stages = [Stage(96, 32, 32, 4, 1), Stage(192, 32, 64, 4, 1)]
        quick = {
            "fields": ["drawn"],
            "tasks": ["border"],
            "seeds": [0],
            "stages": stages,
            "tiles": 4,
            "folds": 2,
            "ablation": True,
        }
        vars(args).update(quick)
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        rows = []
        for name in args.fields:
            fields = fields_of(name, max(stage.square_px for stage in args.stages), 8 if args.quick else 64)
            for task in args.tasks:
                if name == ONE_TISSUE_A_SOURCE and task in ("share", "any"):
                    continue
                studies = [make_study(fields, out / f"{name}_{task}_{seed}", task, seed, args) for seed in args.seeds]
                rows += summary(studies, fields=name, task=task, stages=args.stages, seeds=len(args.seeds))
        print_rows(rows)
        report("whole_slide_task", rows, args.save)


def make_study(fields: tuple[Field, ...], folder: Path, task: Any, seed: int, args: argparse.Namespace) -> Study:
    """Study of one seed, with its slides: that of the last stage, which knows the ones before."""
    study, variants = None, VARIANTS if args.ablation else VARIANTS[:1]
    for stage in args.stages:
        side_px, square_px, block_px, pairs, epochs, halves = stage
        slides = SyntheticSettings(
            task=task,
            side_px=side_px,
            square_px=square_px,
            block_px=block_px,
            pairs=pairs,
            halves=halves,
            patients=2,
            folds=args.folds,
            seed=seed,
        )
        out = folder / (f"{side_px}px" if halves == 4 else f"{side_px}px_{halves}_halves")
        finetuning = FinetuneSettings(
            model=args.model,
            weights=args.weights,
            side_px=side_px,
            epochs=epochs,
            batch_size=16 if study is None else 4,
            lr=args.lr if study is None else args.lr / 3,
            clip_norm=1.0,
            match_on="pair",
            keep_head=study is not None,
            drop_path=0.0,
            augmentation="flips" if halves == 4 else "none",  # a flip leads to the other halves
            seed=seed,
            bootstrap=0,
            device=args.device,
            cache_dir=out / "canvases",
            deletion_slides=0,
        )
        cohort = read_cohort(make_slides(fields, out / "slides", slides))
        comparison = ComparisonSettings(seed=seed, bootstrap=0, device=args.device)
        is_last = stage is args.stages[-1]
        study = Study(
            out,
            cohort,
            slides,
            finetuning,
            study,
            comparison,
            args.tiles,
            is_last,
            variants,
            tuple(args.test_folds or ()),
        )
    assert study is not None
    return study


if __name__ == "__main__":
    main()
