"""Training method of the objective `texture`: a LongViT predicts descriptors of the patches of recoloured crops.

    d = whitened descriptors of the patches (`patch_descriptors`),   e = [mean of d, spread of d] over a crop, whitened
    loss = mean (A token - d)² + mean (B embedding - e)²             A, B: linear heads

The descriptors are those of the crop as it is. The network receives the crop in random colours: it must recognise
structure in any stain. Every patch is a target of 40 numbers, so a step teaches more than one class per crop does. This
counts where there are hundreds of steps. Masked feature prediction is related (Wei et al. 2022, arXiv 2112.09133): its
targets are histograms of gradients, of hidden patches.

Whitening is fitted on the monitored regions before the first step and stored in the checkpoint.

B regions, C crops, N patches of a crop, D width, K numbers of a descriptor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from longvit.dino.schedules import Schedules
from longvit.dino.student_teacher import parameter_groups, set_rates
from longvit.model.embedding import IMAGENET_MEAN, IMAGENET_STD
from longvit.model.longvit import LongViT, LongViTConfig
from longvit.pretraining.dino_method import Crops, clip_each
from longvit.pretraining.patch_descriptors import NUMBERS, describe, optical_density

_LONGEST = 4.0  # of a whitened number: outliers count no more than this
_FLOOR = 1e-3  # share of the largest variance below which a direction is noise
_CROPS_AT_ONCE = 64


class Whitening(nn.Module):
    """Mean and directions of features, so that each whitened number has mean 0 and variance of about 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("directions", torch.eye(size))
        self.mean: Tensor
        self.directions: Tensor

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Fits to features (n, size) by their covariance."""
        mean = features.double().mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((features.double() - mean).T))
        floor = 0.02 * variances.mean() + _FLOOR * variances.max() + 1e-12
        self.mean.copy_(mean)
        self.directions.copy_(directions / (variances.clamp(min=0) + floor).sqrt())

    def forward(self, features: Tensor) -> Tensor:
        return ((features - self.mean) @ self.directions).clamp(-_LONGEST, _LONGEST)


class TextureRegression(nn.Module):
    """The network and its two linear heads: the model of a pretraining's checkpoint."""

    def __init__(self, config: LongViTConfig, drop_path: float) -> None:
        super().__init__()
        self.backbone = LongViT(
            replace(config, pool_norm="token_norm", num_classes=0, class_names=(), drop_path=drop_path)
        )
        self.patch_head = nn.Linear(config.embed_dim, NUMBERS)
        self.crop_head = nn.Linear(config.embed_dim, 2 * NUMBERS)
        self.patch_whitening, self.crop_whitening = Whitening(NUMBERS), Whitening(2 * NUMBERS)

    def fit_whitening(self, regions: Sequence[NDArray[np.uint8]]) -> None:
        """Fits the whitening of the targets to regions uint8 (S, S, 3)."""
        device, patches = self.patch_whitening.mean.device, []
        for start in range(0, len(regions), _CROPS_AT_ONCE):
            pixels = torch.from_numpy(np.stack(list(regions[start : start + _CROPS_AT_ONCE])))
            crops = pixels.permute(0, 3, 1, 2).to(device).float() / 255
            patches.append(describe(crops, self.backbone.config.patch_px))
        described = torch.cat(patches)
        self.patch_whitening.fit(described.flatten(0, 1))
        self.crop_whitening.fit(_of_crop(self.patch_whitening(described)))

    @torch.no_grad()
    def targets(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of crops (n, 3, S, S) in 0 … 1: of the patches (n, N, K) and of the crops (n, 2K)."""
        patches = self.patch_whitening(describe(crops, self.backbone.config.patch_px))
        return patches, self.crop_whitening(_of_crop(patches))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (n, 3, S, S) → predicted targets, in float32."""
        tokens = self.backbone.fc_norm(self.backbone.forward_features(images)).float()
        with torch.autocast(images.device.type, enabled=False):
            return self.patch_head(tokens), self.crop_head(tokens.mean(1))


class TextureMethod:
    """Training method of the objective: AdamW, DINO's schedules of rate and decay, gradients clipped by parameter."""

    def __init__(self, model: TextureRegression, schedules: Schedules, *, recolour: float) -> None:
        self.model, self.schedules, self.recolour = model, schedules, recolour

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.model), lr=0.0)

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Mapping[str, float]:
        rates = {"lr": self.schedules.lr(step), "weight_decay": self.schedules.weight_decay(step)}
        set_rates(optimizer, **rates)
        return rates

    def step(self, model: nn.Module, batch: Crops) -> dict[str, Tensor]:
        """Step of the loop: loss of a forward pass and its two terms."""
        device = self.model.patch_head.weight.device
        crops = torch.cat([crop.to(device, non_blocking=True) for crop in batch.crops]).float() / 255
        with torch.autocast(device.type, enabled=False):
            targets = self.model.targets(crops)
            images = normalised(recoloured(crops, self.recolour))
        patches, whole = (F.mse_loss(*pair) for pair in zip(self.model(images), targets, strict=True))
        return {"loss": patches + whole, "patch_error": patches.detach(), "crop_error": whole.detach()}

    def metrics(self, statistics: Tensor) -> Mapping[str, Tensor]:
        return {}

    def transform_gradients(self, gradients: Sequence[Tensor], norm: float) -> None:
        clip_each(gradients, self.schedules.settings.clip_norm)

    def after_step(self, step: int, statistics: Tensor | None) -> None:
        pass


def recoloured(crops: Tensor, amount: float) -> Tensor:
    """Crops (n, 3, S, S) in 0 … 1 in random colours, drawn from torch's global random state.

    Optical densities of red, green and blue are mixed by the identity plus a normal matrix times `amount`. They are
    multiplied by exp(1.25 · amount · normal) and shifted by amount / 4 · normal. All is drawn for each crop.
    """
    n = len(crops)
    mixing = torch.eye(3) + amount * torch.randn(n, 3, 3)
    mixing = mixing * torch.exp(1.25 * amount * torch.randn(n, 1, 1))
    shift = amount / 4 * torch.randn(n, 3, 1)
    density = torch.baddbmm(shift.to(crops.device), mixing.to(crops.device), optical_density(crops).flatten(2))
    return torch.exp(-density).clamp(0, 1).view_as(crops)


def normalised(crops: Tensor) -> Tensor:
    """Pixels in 0 … 1, normalised as the model's input."""
    mean, std = (crops.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (crops - mean) / std


def _of_crop(patches: Tensor) -> Tensor:
    """Mean and spread of descriptors (n, N, K) over the patches, (n, 2K)."""
    return torch.cat([patches.mean(1), patches.std(1, correction=0)], 1)
