"""Settings of a pretraining: its objective, and those of DINO, of the regions, of the crops and of the run.

Each default is written once, with its source: `dino.settings` (training), `regions.regions` (regions), `regions.crops`
(crops). Light to import: the command line reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longvit.annotations.settings import AnnotationSettings
from longvit.config import check_choices, check_values, convert_paths
from longvit.dino.settings import DinoSettings
from longvit.errors import InputError
from longvit.pretraining.regions.crops import CropSettings
from longvit.pretraining.regions.regions import RegionSettings
from longvit.training.settings import TrainingRuntime, TrainSettings

# Tokens of the student in one forward pass where `forward_batch` is left open: 4 regions of the paper's crops.
_TOKENS_PER_FORWARD = 16_384


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(DinoSettings, RegionSettings, CropSettings):
    """Settings of a pretraining that decide its result."""

    objective: Literal["dino", "texture"] = "dino"
    """dino: self-distillation, the paper's. texture: descriptors of the patches' structure are predicted from
    recoloured crops, for few slides and hundreds of steps; it has no local crops, teacher and prototypes."""
    recolour: float = 0.2
    """Strength of the random colours of the objective texture; 0: none."""
    model: str = "longvit_small_patch32"
    """Name of the model: longvit_tiny_patch32, longvit_small_patch32 (the paper's) or longvit_base_patch32; for few
    slides longvit_tiny_stem_patch32, longvit_small_stem_patch32 or longvit_base_stem_patch32."""
    weights: Path | None = None
    """Folder of a model that student and teacher start from (longvit-tiny-stem ships with the package), or a checkpoint
    in DINO's layout, with its heads and centre; its size overrides model. Left out: random weights."""
    batch_size: int = 1024
    """Regions per optimiser step, over all ranks (LongViT, table 5)."""
    forward_batch: int | None = None
    """Regions per forward pass; the gradients of batch_size / forward_batch passes are averaged. Left out: as many as
    hold together 16,384 patches of crops (4 regions with the paper's crops), at most batch_size."""
    packed: bool = True
    """All crops of a pass in one sequence; off: a pass for every size of crop. Both agree to rounding."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the model (the authors' code: float16 autocast on GPUs); parameters stay float32."""
    recompute: bool = False
    """Compute each layer twice and keep less: for more regions in a forward pass than fit otherwise."""
    seed: int = 0
    """Seed of the weights, the regions, their order, crops and drop path."""
    probe_every: int = 1
    """Epochs between two evaluations (k-NN, linear probe, rank); the last epoch is always evaluated."""
    probe_regions: int = 256
    """Number of fixed regions whose embeddings are monitored: rank, principal components, nearest neighbours."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingRuntime, AnnotationSettings, PretrainRecipe):
    """DINO pretraining of a LongViT on regions of slides; the defaults are those of the paper's table 5.

    >>> import longvit
    >>> longvit.PretrainSettings(model="longvit_tiny_patch32", epochs=10, batch_size=64).global_px
    1024
    """

    num_workers: int = 2
    """Processes that read regions and cut crops; 0 reads in the training process."""
    cache_dir: Path | None = None
    """Folder that caches the pixels of every region after its first read, 3 bytes a pixel; for slides that are slow to
    read. Runs may share it."""
    report_minutes: float = 2.0
    """Minutes between two reports; one more is written at the end."""

    def __post_init__(self) -> None:
        for kind in (DinoSettings, RegionSettings, CropSettings):
            if check := getattr(kind, "__post_init__", None):
                check(self)
        for name in ("batch_size", "probe_every", "sequence_ranks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: at least 1")
        for name in ("num_workers", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)}: at least 0")
        if self.probe_regions < 8:
            raise InputError(f"probe_regions {self.probe_regions}: at least 8, for nearest neighbours")
        if not self.report_minutes >= 0:
            raise InputError(f"report_minutes {self.report_minutes}: at least 0")
        if not 0 <= self.recolour <= 1:
            raise InputError(f"recolour {self.recolour}: between 0 and 1")
        if self.objective == "texture" and self.local_crops:
            raise InputError(f"local_crops {self.local_crops}: the objective texture has crops of one size; give 0")
        if self.objective == "texture" and (self.sequence_ranks > 1 or self.global_px % 4):
            raise InputError(
                "the objective texture needs whole crops: --sequence-ranks 1, and a global_px that 4 divides"
            )
        if self.forward_batch is not None and (self.forward_batch < 1 or self.batch_size % self.forward_batch):
            raise InputError(f"forward_batch {self.forward_batch}: it must divide batch_size {self.batch_size}")
        convert_paths(self)
        check_choices(self)
        check_values(self, threads=4096, num_workers=1024)
        self.training()  # checks the remaining settings

    def regions_per_forward(self, patch_px: int = 32, data_ranks: int = 1) -> int:
        """`forward_batch`, or its default: the largest divisor of batch_size within the limit that the help states.

        Each of the `data_ranks` ranks that take different regions has at least one forward pass.
        """
        if self.forward_batch is not None:
            return self.forward_batch
        tokens = [(side_px // patch_px) ** 2 for side_px in (self.global_px, self.local_px)]
        per_region = max(1, self.global_crops * tokens[0] + self.local_crops * tokens[1])
        limit = max(1, min(_TOKENS_PER_FORWARD // per_region, self.batch_size // data_ranks))
        return max(n for n in range(1, min(limit, self.batch_size) + 1) if self.batch_size % n == 0)

    def training(self, regions_per_forward: int | None = None) -> TrainSettings:
        """Settings of the training loop; `DinoMethod` sets rates and clips gradients."""
        return TrainSettings(
            epochs=self.epochs,
            accumulation=self.batch_size // (regions_per_forward or self.regions_per_forward()),
            lr=self.lr,
            min_lr=self.min_lr,
            warmup_epochs=self.warmup_epochs,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            dtype=self.dtype,
            max_bad_steps=self.max_bad_steps,
            tensorboard=self.tensorboard,
            seed=self.seed,
            checkpoint_minutes=self.checkpoint_minutes,
        )
