"""GCN-MIL: graph convolutions over the tiles of a slide (Zhao et al. 2020; HIPT's DeepGraphConv), GIN's sum.

    x_i ← relu(MLP(x_i + Σ_{j next to i} x_j))                three times (Xu et al. 2019, equation 4.1 with ε = 0)
    a gated attention over the tiles,  logits = W ρ(Σ_i a_i x_i) + b

The neighbours of tile i are its k nearest tiles of the same slide, in feature space (HIPT's default) or by coordinates.
Each tile sums over its own neighbours, so the graph is directed.

Differences from the published graphs: their tree of features is queried with coordinates, so those neighbours are
wrong. Their graph is a file made by a notebook; here `prepare` makes it once per bag. Exact neighbours in feature space
take time quadratic in the tiles, but not memory (a few rows of distances at a time). By coordinates it is a k-d tree, N
log N. Training is linear either way.

N tiles, k neighbours, E edges, D width of the features, H width of the layers, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from longvit.baselines.bag import Bag, Prediction, all_tiles
from longvit.baselines.fusion import Head
from longvit.baselines.gated_attention import GatedAttention
from longvit.baselines.system import Shape, System, check_settings, hidden_layer
from longvit.errors import InputError

_CHUNK_DISTANCES = 2**24  # at a time: 64 MB in float32


def nearest(points: Tensor, k: int, slides: Sequence[slice], *, few_dims: bool) -> Tensor:
    """points (N, P) → (N, k) int64: the k nearest others of each point within its slide, by Euclidean distance.

    −1 where a slide has fewer than k others. `few_dims`: a k-d tree instead of all distances.
    """
    neighbours = torch.full((len(points), k), -1, device=points.device)
    for s in slides:
        if others := min(k, s.stop - s.start - 1):
            in_slide = (_by_tree if few_dims else _by_all_distances)(points[s].detach(), others)
            neighbours[s, :others] = s.start + in_slide
    return neighbours


def _by_tree(points: Tensor, k: int) -> Tensor:
    from sklearn.neighbors import NearestNeighbors

    tree = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(points.cpu().numpy())
    # without arguments: a point is not its own neighbour
    return torch.from_numpy(tree.kneighbors(return_distance=False)).to(points.device)


def _by_all_distances(x: Tensor, k: int) -> Tensor:
    """A few rows of distances at a time, |x_j|² − 2 x_i · x_j, which has the same order as |x_i − x_j|²."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(0)  # smaller numbers, smaller rounding
    squares, neighbours = x.square().sum(1), []
    for rows in torch.arange(len(x), device=x.device).split(max(1, _CHUNK_DISTANCES // len(x))):
        distances = torch.addmm(squares, x[rows], x.T, alpha=-2)
        distances[torch.arange(len(rows), device=x.device), rows] = torch.inf  # a tile is not its own neighbour
        neighbours.append(distances.topk(k, largest=False).indices)
    return torch.cat(neighbours)


@dataclass(frozen=True)
class Graph:
    """Concatenated neighbours (E,), and the start of those of each tile (N,)."""

    neighbours: Tensor
    starts: Tensor

    def sum(self, x: Tensor) -> Tensor:
        """x (N, D) → x_i + Σ_j x_j (N, D), without storing the (E, D) summands."""
        return x + functional.embedding_bag(self.neighbours, x, self.starts, mode="sum")


def joined(bags: Sequence[Bag]) -> Graph:
    """Graphs of several bags as one graph with a component per bag."""
    flat, degrees, first = [], [], 0
    for bag in bags:
        assert bag.neighbours is not None
        is_neighbour = bag.neighbours >= 0
        flat.append(bag.neighbours[is_neighbour] + first)
        degrees.append(is_neighbour.sum(1))
        first += len(bag)
    degree = torch.cat(degrees)
    return Graph(torch.cat(flat), degree.cumsum(0) - degree)


@dataclass(frozen=True)
class GcnMilSettings:
    """Settings of HIPT's DeepGraphConv."""

    graph: Literal["features", "coordinates"] = "features"
    """Space of the neighbours: features or coordinates (HIPT's edge_latent, its default, and edge_index)."""
    k: int = 8
    """Neighbours of each tile (Patch-GCN's notebook)."""
    layers: int = 3
    """Graph convolutions (HIPT)."""
    hidden: int = 256
    """H, of the convolutions, the attention's gate and ρ (HIPT)."""
    dropout: float = 0.25
    """Dropout of the gate and ρ (HIPT)."""

    def __post_init__(self) -> None:
        check_settings(self, at_least={"k": 0, "layers": 1, "hidden": 1})


class GcnMil(System):
    """GCN-MIL: graph convolutions, then attention."""

    Settings = GcnMilSettings

    def __init__(self, shape: Shape, settings: GcnMilSettings) -> None:
        super().__init__(shape)
        self.settings = settings
        h = settings.hidden
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Linear(h if i else shape.in_dim, h), nn.ReLU(), nn.Linear(h, h))
            for i in range(settings.layers)
        )
        self.attention = GatedAttention(h, h, settings.dropout)
        self.rho = hidden_layer(h, h, settings.dropout)
        self.head = Head(h, shape)

    def prepare(self, bag: Bag) -> Bag:
        """Adds the neighbours of each tile, unless `bag.neighbours` has them."""
        if bag.neighbours is not None:
            if len(bag.neighbours) != len(bag):
                raise InputError(f"{bag.name}: {len(bag)} tiles, neighbours of {len(bag.neighbours)}")
            return bag
        by_coordinates = self.settings.graph == "coordinates"
        if by_coordinates and bag.coords is None:
            raise InputError(f"{bag.name}: no coordinates, which graph=coordinates needs; take graph=features")
        points = bag.coords if by_coordinates and bag.coords is not None else bag.features
        return replace(bag, neighbours=nearest(points, self.settings.k, bag.slides, few_dims=by_coordinates))

    def encode(self, bags: Sequence[Bag]) -> Sequence[Any]:
        """→ x (N, H) of each bag."""
        graph = joined(bags)
        x = all_tiles(bags)
        for convolution in self.convolutions:
            x = convolution(graph.sum(x)).relu()
        return list(x.split([len(bag) for bag in bags]))

    def pool(self, encoded: Tensor, bag: Bag, label: Tensor | None) -> Prediction:
        a, pooled = self.attention.pool(encoded)
        return Prediction(self.head(self.rho(pooled), self.omics(bag)), a.detach())
