"""DeepAttnMISL (Yao et al. 2020, "Whole slide images based cancer survival prediction using attention guided … MIL").

    c_i = nearest of K phenotypes to x_i                      (k-means of the training fold's features)
    p_k = mean of φ_k(x_i) over the tiles with c_i = k        (φ_k: two separate layers; 0 where a bag has none)
    h_k = dropout(relu(W p_k + b)),  a gated attention over the K,  logits = W ρ(Σ_k a_k h_k) + b

The authors' phenotypes (a file `fast_cluster_ids.pkl`) were never published. Here `fit` computes them with
scikit-learn, from the bags of the training fold alone, and they are stored with the weights. As in HIPT and MCAT, an
empty phenotype is a vector of zeros that still receives attention.

Attention: a_k, split equally over the tiles of phenotype k and renormalised over the phenotypes of the bag.

B bags, N tiles, D width of their features, K phenotypes, H hidden width, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longvit.baselines.bag import Bag, Prediction, all_tiles
from longvit.baselines.fusion import Head
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.system import Shape, System, check_settings, hidden_layer, hidden_width
from longvit.errors import InputError

_CHUNK_TILES = 2**16


@dataclass(frozen=True)
class DeepAttnMislSettings:
    """Settings of HIPT's MIL_Cluster_FC and MCAT's MIL_Cluster_FC_surv."""

    phenotypes: int = 10
    """K (HIPT, MCAT)."""
    hidden: int | None = None
    """H; by default 384 for features of 384 numbers, 512 for others (HIPT, MCAT)."""
    gate: int = 256
    """Width of the attention's gate (HIPT, MCAT)."""
    rho: int = 256
    """Width of the layer before the last (HIPT, MCAT)."""
    dropout: float = 0.25
    """Dropout of every layer and the gate (HIPT, MCAT)."""
    fit_tiles: int = 50_000
    """Largest number of tiles for k-means, the same number from every training bag where it has them (ours)."""
    fit_seed: int = 1
    """Seed of the choice of tiles and of k-means (ours)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"phenotypes": 1, "hidden": 1, "gate": 1, "rho": 1, "fit_tiles": 1})


class DeepAttnMisl(System):
    """DeepAttnMISL: phenotypes, then attention over them."""

    Settings = DeepAttnMislSettings

    def __init__(self, shape: Shape, settings: DeepAttnMislSettings) -> None:
        super().__init__(shape)
        self.settings = settings
        hidden, dropout = settings.hidden or hidden_width(shape.in_dim), settings.dropout
        self.phi = nn.ModuleList(
            nn.Sequential(hidden_layer(shape.in_dim, hidden, dropout), hidden_layer(hidden, hidden, dropout))
            for _ in range(settings.phenotypes)
        )
        self.reduce = hidden_layer(hidden, hidden, dropout)
        self.attention = GatedAttention(hidden, settings.gate, dropout)
        self.rho = hidden_layer(hidden, settings.rho, dropout)
        self.head = Head(settings.rho, shape)
        # NaN: not fitted
        self.register_buffer("centers", torch.full((settings.phenotypes, shape.in_dim), torch.nan))
        self.centers: Tensor

    def fit(self, bags: Sequence[Bag]) -> None:
        """Computes the phenotypes: k-means of the tiles of the training fold."""
        from sklearn.cluster import KMeans

        super().fit(bags)
        s, rng = self.settings, np.random.default_rng(self.settings.fit_seed)
        tiles_per_bag = max(1, s.fit_tiles // len(bags))
        parts = []
        for bag in bags:
            x = bag.features.detach()
            if len(x) > tiles_per_bag:
                x = x[np.sort(rng.choice(len(x), tiles_per_bag, replace=False))]
            parts.append(x.to("cpu", torch.promote_types(x.dtype, torch.float32)).numpy())
        tiles = np.concatenate(parts)
        if len(tiles) < s.phenotypes:
            raise InputError(f"{len(tiles)} tiles in the training fold are too few for {s.phenotypes} phenotypes")
        clustering = KMeans(s.phenotypes, random_state=s.fit_seed, n_init=1).fit(tiles)
        self.centers.copy_(torch.from_numpy(clustering.cluster_centers_))

    @torch.no_grad()
    def prepare(self, bag: Bag) -> Bag:
        """Adds the phenotype of each tile, unless `bag.clusters` has it."""
        if bag.clusters is not None:
            clusters, last = bag.clusters, len(self.centers) - 1
            if len(clusters) != len(bag) or int(clusters.min()) < 0 or int(clusters.max()) > last:
                raise InputError(
                    f"{bag.name}: clusters must be {len(bag)} numbers in 0 … {last}, got {len(clusters)} in "
                    f"{clusters.min() if len(clusters) else None} … {clusters.max() if len(clusters) else None}"
                )
            return bag
        if self.centers.isnan().any():
            raise InputError(f"{bag.name}: no phenotypes yet; call fit(training bags) first")
        nearest = [torch.cdist(x, self.centers).argmin(1) for x in bag.features.split(_CHUNK_TILES)]
        return replace(bag, clusters=torch.cat(nearest))

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        """→ p (K, H) of each bag."""
        x = all_tiles(bags)
        clusters = torch.cat([bag.clusters for bag in bags if bag.clusters is not None])
        bag_of_tile = torch.repeat_interleave(torch.tensor([len(bag) for bag in bags], device=x.device))  # (T,)
        means = []
        for k, phi in enumerate(self.phi):
            members = (clusters == k).nonzero().squeeze(1)
            h, owner = phi(x[members]), bag_of_tile[members]
            tiles = torch.bincount(owner, minlength=len(bags)).clamp(min=1)
            sums = h.new_zeros(len(bags), h.shape[1]).index_add(0, owner, h)
            means.append(sums / tiles.unsqueeze(1).to(h.dtype))
        return list(torch.stack(means, 1))  # (B, K, H)

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        assert bag.clusters is not None
        a, pooled = self.attention.pool(self.reduce(encoded))
        logits = self.head(self.rho(pooled), self.omics(bag))
        tiles = torch.bincount(bag.clusters, minlength=len(a))
        tile_attention = torch.where(tiles > 0, a.detach() / tiles.clamp(min=1).to(a.dtype), 0.0)[bag.clusters]
        return Prediction(logits, tile_attention / tile_attention.sum())
