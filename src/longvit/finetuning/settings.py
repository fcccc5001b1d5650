"""Settings of a fine-tuning: the paper's table 6 as defaults. Light to import: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from longvit.annotations.settings import AnnotationSettings
from longvit.config import check_choices, check_values, convert_paths
from longvit.errors import InputError
from longvit.tasks.settings import TaskSettings
from longvit.training.settings import TrainingRuntime, TrainSettings

if TYPE_CHECKING:
    from longvit.data.canvas_cache import CanvasSettings

# Patches in one forward pass where `forward_batch` is left open: those of one 4,096 × 4,096 px canvas.
_PATCHES_PER_FORWARD = 16_384
_PATCH_PX = 32


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(TaskSettings):
    """Settings of a fine-tuning that decide its result."""

    survival_loss: Literal["nll", "cox"] = "nll"
    """Survival: nll, the discrete-time likelihood of MCAT, or cox, the partial likelihood within each forward pass."""
    slides: Literal["all", "first"] = "all"
    """Survival: all slides of a patient, whose risks are averaged, or its first one, as published."""
    aggregate: Literal["mean", "max"] = "mean"
    """Prediction of a patient from those of its slides, in patients.csv and the metrics per patient: their mean, or
    their maximum (two classes: of the second one)."""
    model: str = "longvit_small_patch32"
    """Name of a model that starts from random weights: longvit_tiny_patch32, longvit_small_patch32 (the paper's) or
    longvit_base_patch32; for few slides longvit_tiny_stem_patch32, longvit_small_stem_patch32 or
    longvit_base_stem_patch32, with a convolutional stem."""
    weights: Path | None = None
    """Folder of a model to start from; its size overrides model. `longvit pretrain` writes one, `longvit convert` makes
    one of a published checkpoint, longvit-tiny-stem ships with the package. Left out: random weights."""
    keep_head: bool = False
    """Keep the head of weights fine-tuned for the same classes, to continue with other slides or a larger
    canvas. Otherwise a new head starts at random."""
    side_px: int = 1024
    """Side of the square canvas that every slide is resized to, in px; a multiple of the patch (32)."""
    fit: Literal["stretch", "pad"] = "stretch"
    """Fit of a slide to the canvas: stretch, as in the paper, or pad (proportions kept)."""
    epochs: int = 10
    """Passes over the training slides."""
    warmup_epochs: float = 1.0
    """Epochs during which the learning rate rises."""
    lr: float = 5e-5
    """Peak learning rate of AdamW."""
    min_lr: float = 1e-6
    """Learning rate at the start of the warm-up and at the end."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, on matrices only."""
    layer_decay: float = 1.0
    """Ratio of each layer's learning rate to that of the layer above it; 1 is off, as in the paper."""
    clip_norm: float | None = None
    """Longest gradient norm: longer gradients are scaled to it; left out: off, as in the paper."""
    batch_size: int = 8
    """Slides per optimiser step."""
    forward_batch: int | None = None
    """Slides per forward pass; the gradients of batch_size / forward_batch passes are added up. Left out: as many as
    hold together the patches of one 4,096 px canvas (16 at 1,024 px, 1 from 4,096 px on), at most batch_size."""
    drop_path: float = 0.1
    """Rate at which the last layer is skipped while training; earlier layers less."""
    augmentation: Literal["none", "flips", "flips+stain", "flips+colour"] = "flips"
    """Augmentation of training canvases: none, flips (and quarter turns), flips+stain (and stain strength), or
    flips+colour (and any hue, where colour separates laboratories rather than classes)."""
    balanced: bool = False
    """Draw training slides with replacement so that classes (survival: event and censored) are equally frequent."""
    match_on: str | None = None
    """Column of the cohort table that names sets of matched slides, for example a case and its controls. They follow
    each other in training, so that they are in one batch. Left out: random order."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the model; parameters stay float32. bfloat16 is faster where the processor has it, float16 is for
    GPUs before Ampere."""
    ema: float | None = None
    """Decay of the EMA of the parameters (say 0.999), which is then evaluated and kept as the model."""
    recompute: bool = False
    """Compute each layer twice and keep less: for canvases that do not fit into memory otherwise."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Fractions of the patients in train, val and test, where the CSV has no split column."""
    allow_leak: bool = False
    """Train although a patient is on two sides of the split, as in some published folds; every result states it."""
    seed: int = 0
    """Seed of the weights, the split, the order of the slides, augmentation and drop path."""
    controls: bool = True
    """Also report what mean colour, a random frozen encoder and the frozen starting weights reach on the slides."""
    bootstrap: int = 1000
    """Resamples of the patients for the 95 % interval of the main metric."""
    max_bad_tiles: int | None = None
    """Highest number of unreadable tiles of a slide; slides with more are left out. By default holes are filled and
    reported."""
    reader: Literal["auto", "openslide", "tiff"] = "auto"
    """Reader of the slides; auto selects one per file."""
    decode: Literal["exact", "reduced"] = "exact"
    """Decoding of the canvas: reduced lets the JPEG decoder reduce the tiles. It is faster and differs by half a grey
    level on average. Published numbers are exact."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainingRuntime, AnnotationSettings, FinetuneRecipe):
    """Fine-tuning of LongViT on a cohort of labelled slides; the defaults are those of the paper's table 6.

    >>> import longvit
    >>> longvit.FinetuneSettings(model="longvit_tiny_patch32", side_px=4096, epochs=5).lr
    5e-05
    """

    cell: str | None = None
    """Cell of the paper's tables that the run measures, for `longvit tables`, e.g. table1/brca/1024."""
    offload: bool = False
    """With recompute: kept tensors and images wait in host memory until backward, with the same bits. For a canvas of
    32,768 px on one card of 24 GB (see `longvit plan`)."""
    num_workers: int = 2
    """Threads that make canvases and read them ahead; 0 reads in the training thread."""
    memory_mb: int = 512
    """Canvases kept in memory, in MB; the others are read from the cache every epoch."""
    deletion_slides: int | None = None
    """Held-out slides of the report's deletion test, which checks the patch contributions; 0: no test. Left out: as
    many, up to 8, as take a few seconds on a CPU."""
    cache_dir: Path | None = None
    """Folder of the canvases, which runs may share; default: canvases/ in the output folder."""

    def __post_init__(self) -> None:
        if self.side_px < _PATCH_PX or self.side_px % _PATCH_PX:
            near = max(1, round(self.side_px / _PATCH_PX)) * _PATCH_PX
            raise InputError(f"side_px {self.side_px}: a multiple of {_PATCH_PX} is needed, for example {near}")
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size}: at least 1")
        if self.forward_batch is not None and (self.forward_batch < 1 or self.batch_size % self.forward_batch):
            raise InputError(f"forward_batch {self.forward_batch}: it must divide batch_size {self.batch_size}")
        if not 0 <= self.drop_path < 1:
            raise InputError(f"drop_path {self.drop_path}: at least 0, below 1")
        if self.deletion_slides is not None and self.deletion_slides < 0:
            raise InputError(f"deletion_slides {self.deletion_slides}: at least 0")
        super().__post_init__()
        if self.compares_slides() and self.slides_per_forward() < 2:
            raise InputError("survival_loss cox compares the slides of a forward pass: forward_batch must be above 1")
        if self.offload and not self.recompute:
            raise InputError("offload moves what recomputation keeps: give --recompute too")
        if self.offload and self.sequence_ranks > 1:
            raise InputError("offload is for slides on one device: omit --sequence-ranks or --offload")
        if self.sequence_ranks < 1:
            raise InputError(f"sequence_ranks {self.sequence_ranks}: at least 1")
        for name in ("bootstrap", "num_workers", "memory_mb", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)}: at least 0")
        if self.match_on is not None and self.balanced:
            raise InputError("balanced draws slides one by one, match_on keeps sets of them together: omit one")
        convert_paths(self)
        check_choices(self)
        check_values(self, n_bins=1000, side_px=2**20, threads=4096, num_workers=1024, bootstrap=10**6)
        self.training()  # checks the remaining settings

    def canvas(self) -> CanvasSettings:
        """Settings of the cached canvases."""
        from longvit.data.canvas_cache import CanvasSettings

        annotations = AnnotationSettings(**{f.name: getattr(self, f.name) for f in fields(AnnotationSettings)})
        return CanvasSettings(self.side_px, self.fit, self.reader, self.max_bad_tiles, self.decode, annotations)

    def slides_per_forward(self, data_ranks: int = 1) -> int:
        """`forward_batch`, or its default: the largest divisor of batch_size within the limit that the help states.

        Each of the `data_ranks` ranks that take different slides has at least one forward pass.
        """
        if self.forward_batch is not None:
            return self.forward_batch
        limit = max(1, _PATCHES_PER_FORWARD // (self.side_px // _PATCH_PX) ** 2)
        if not self.compares_slides():
            limit = min(limit, max(1, self.batch_size // data_ranks))
        return max(n for n in range(1, min(limit, self.batch_size) + 1) if self.batch_size % n == 0)

    def compares_slides(self) -> bool:
        """True where the loss depends on which slides share a forward pass."""
        return self.task == "survival" and self.survival_loss == "cox"

    def training(self, slides_per_forward: int | None = None) -> TrainSettings:
        """Settings of the training loop."""
        return TrainSettings(
            epochs=self.epochs,
            accumulation=self.batch_size // (slides_per_forward or self.slides_per_forward()),
            lr=self.lr,
            min_lr=self.min_lr,
            warmup_epochs=self.warmup_epochs,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            clip_norm=self.clip_norm,
            dtype=self.dtype,
            ema=self.ema,
            max_bad_steps=self.max_bad_steps,
            tensorboard=self.tensorboard,
            seed=self.seed,
            checkpoint_minutes=self.checkpoint_minutes,
        )
