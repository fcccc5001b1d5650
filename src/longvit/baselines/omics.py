"""Standardisation of omic vectors: each gene with mean and SD of the training fold.

    z_g = (x_g − mean_g) / sd_g         0 where x_g was not measured, or where gene g does not vary in the training fold

G genes, B patients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(…, G) → (…, G); before `fit` mean 0 and SD 1, for vectors that are already standardised."""

    def __init__(self, genes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(genes))
        self.register_buffer("sd", torch.ones(genes))
        self.mean: Tensor
        self.sd: Tensor

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """x (B, G), NaN where not measured; the SD is that of the population, as in scikit-learn."""
        x = x.double()
        mean = x.nanmean(0)
        sd = (x - mean).square().nanmean(0).sqrt()
        self.mean.copy_(mean.nan_to_num(0.0))  # NaN: measured in no patient
        # a constant gene's SD is its rounding error
        self.sd.copy_(torch.where(sd > 1e-12 * mean.abs().clamp(min=1), sd, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.where(self.sd > 0, (x - self.mean) / self.sd, 0.0)
        return z.nan_to_num(0.0)
