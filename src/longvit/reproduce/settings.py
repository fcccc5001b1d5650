"""Settings of a reproduction. Light to import: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longvit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings:
    """Sources of a cell's protocol, weights and slides, and the limits of its run.

    >>> from pathlib import Path
    >>> from longvit.reproduce.settings import ReproduceSettings
    >>> ReproduceSettings(protocol=(Path("HIPT"),)).disk_gb
    50.0
    """

    protocol: tuple[Path, ...] = ()
    """Clone of the published repository with the labels and folds: mahmoodlab/HIPT for tables 1 and 3, mahmoodlab/MCAT
    for tables 2 and 4."""
    weights: Path | None = None
    """Weights to start LongViT from: the authors' checkpoint (longvit.pth), a folder of `longvit pretrain` or `longvit
    convert`, or longvit-tiny-stem. Left out: random weights, which the result states."""
    encoder: str | None = None
    """Baselines: encoder of the tile features, named as for `longvit features`. The paper's table 1 has those of HIPT's
    ViT-256 (hipt:vit256_small_dino.pth), its table 2 those of a ResNet-50 cut after its third stage."""
    changes: Path | None = None
    """YAML file with settings that replace those of the cell's recipe. The result lists them."""
    fetched: Path | None = None
    """Folder of the canvases and features, which cells of one cohort may share. Default: fetched/ in the output
    folder."""
    disk_gb: float = 50.0
    """GiB that slides in transit take at most; canvases and features are kept besides."""
    jobs: int = 4
    """Worker processes that download and read slides."""
    keep_slides: bool = False
    """Keep the slides, in slides/ of the folder of canvases."""
    allow_missing: bool = False
    """Leave out slides that the archive lacks or that fail, instead of refusing."""
    index: Path | None = None
    """Index of the archive: a parquet file as idc-index-data ships it. Default: that of the installed package."""
    endpoint: str = ""
    """Address of a mirror of the archive, e.g. http://localhost:9000. Default: the public bucket."""
    device: str = "auto"
    """auto, cpu, cuda (or cuda:1) or mps."""

    def __post_init__(self) -> None:
        if not self.disk_gb > 0:
            raise InputError(f"--disk-gb {self.disk_gb:g}: more than 0")
        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: at least 1")
