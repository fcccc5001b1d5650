"""Small systems with random weights (biases too) and bags for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from longvit.baselines.bag import Bag
from longvit.baselines.system import System, create_system

WIDTH = 12
OUTPUTS = 3
SIGNATURES = (4, 7, 3, 5, 6, 2)
SMALL: dict[str, dict[str, Any]] = {
    "mean_pooling": {},
    "mil": {"hidden": 9},
    "deep_sets": {"hidden": 9, "rho": 7},
    "attention_mil": {"hidden": 9, "gate": 6, "rho": 7},
    "clam_sb": {"hidden": 9, "gate": 6, "k": 3},
    "ds_mil": {"query": 8},
    "deep_attn_misl": {"phenotypes": 4, "hidden": 9, "gate": 6, "rho": 7},
    "gcn_mil": {"hidden": 8, "k": 3},
    "transmil": {"hidden": 16, "heads": 2, "landmarks": 4},
    "hipt": {},
    "mcat": {},
    "snn": {"hidden": 8},
    "longnet": {"embed_dim": 16, "depth": 2, "num_heads": 4, "ffn_dim": 24},
    "feather": {"hidden": 9, "gate": 6},
    "patch_sampling": {"tiles": 40, "tile_px": 16, "chunk": 8, "width": 16, "gate": 6},
}
OMICS: dict[str, Any] = {"mcat": SIGNATURES, "snn": 10}


def bag(name: str, tiles: int, *, seed: int = 0, genes: Any = None, dtype: torch.dtype = torch.float64) -> Bag:
    """A bag for the system of this name: tiles at different places of a grid of 20 × 20."""
    g = torch.Generator().manual_seed(1000 * seed + tiles)
    places = torch.randperm(400, generator=g)[:tiles]
    genes = OMICS.get(name) if genes is None else genes
    sizes = () if genes is None else (genes,) if isinstance(genes, int) else genes
    vectors = tuple(torch.randn(size, generator=g, dtype=torch.float64).to(dtype) for size in sizes)
    return Bag(
        torch.randn(tiles, WIDTH, generator=g, dtype=torch.float64).to(dtype),
        torch.stack([places % 20, places // 20], 1) * 256,
        vectors[0] if isinstance(genes, int) else vectors or None,
        pixels=lambda numbers, side: np.stack([drawn_tile(seed, int(number), side) for number in numbers]),
        name=f"bag of {tiles}",
    )


def drawn_tile(seed: int, number: int, side: int) -> np.ndarray:
    """Random pixels uint8 (side, side, 3)."""
    return np.random.default_rng([seed, number]).integers(0, 256, (side, side, 3), np.uint8)


def system(name: str, *, outputs: int = OUTPUTS, seed: int = 0, **settings: Any) -> System:
    """In float64 and eval mode, fitted where it has to be; `settings` come over the small ones."""
    torch.manual_seed(seed)
    shape = {k: settings.pop(k) for k in ("omics", "fusion", "task") if k in settings}
    shape.setdefault("omics", OMICS.get(name))
    made = create_system(name, in_dim=WIDTH, outputs=outputs, **shape, **SMALL.get(name, {}) | settings).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.4)
    made.fit([bag(name, n, seed=9, genes=shape["omics"]) for n in (20, 30, 25)])
    return made


def arrays(of: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dict for an oracle."""
    return {k: v.detach().double().numpy() for k, v in of.state_dict().items()}
