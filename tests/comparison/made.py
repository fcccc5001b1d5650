"""Small studies that a system can learn in a second: bags of six features, in which some tiles give the class away."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longvit.comparison.settings import ComparisonSettings
from longvit.data.bag_layouts import tile_attributes, write_bag

WIDTH, TILE_PX = 6, 112
GENES = tuple(f"{gene}{kind}" for gene in ("AAA", "BBB", "CCC") for kind in ("_cnv", "_rnaseq"))
QUICK = ComparisonSettings(
    systems=("mean_pooling", "attention_mil"),
    set=("attention_mil.hidden=8", "attention_mil.gate=4", "attention_mil.rho=8"),
    epochs=3,
    lr=0.01,
    bootstrap=20,
    device="cpu",
    threads=1,
)


def write_features(folder: Path, slide_id: str, features: np.ndarray, *, per_row: int = 5) -> None:
    """In TRIDENT's layout, tiles on a grid of `per_row` columns."""
    place = np.arange(len(features))
    coords = np.stack([place % per_row, place // per_row], 1) * TILE_PX
    attributes = tile_attributes(
        tile_px=TILE_PX, tile_mpp=0.5, overlap_px=0, mpp=(0.5, 0.5), size_px=(per_row * TILE_PX, 2000)
    )
    write_bag(folder, slide_id, features.astype(np.float32), coords, encoder="made", coords_attributes=attributes)


def write_study(folder: Path, n: int = 24, *, slides_of_a_patient: int = 1) -> Path:
    """`n` slides of two classes with survival times, in cohort.csv; their bags in features/; omics.csv.

    A slide of class "tumour" has every fourth tile shifted in feature 0; its patient dies earlier, and has a high AAA.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, omics = ["case_id,slide_id,label,fold,survival_months,event"], [",".join(("case_id", *GENES))]
    for i in range(n):
        rng, patient = np.random.default_rng(i), i // slides_of_a_patient
        is_tumour = patient % 2
        features = rng.normal(size=(12 + i % 5, WIDTH))
        features[::4, 0] += 4 * is_tumour
        write_features(folder / "features", f"s{i:02d}", features)
        of_patient = np.random.default_rng(1000 + patient)
        months, event = 40 - 25 * is_tumour + of_patient.uniform(0, 12), int(of_patient.uniform() < 0.8)
        name = "tumour" if is_tumour else "benign"
        lines.append(f"P{patient:02d},s{i:02d},{name},{patient // 2 % 2},{months:.3f},{event}")
        genes = of_patient.normal(size=len(GENES)) + np.array([3.0 * is_tumour, *[0.0] * (len(GENES) - 1)])
        omics.append(",".join([f"P{patient:02d}", *(f"{g:.4f}" for g in genes)]))
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    (folder / "omics.csv").write_text("\n".join(omics) + "\n")
    (folder / "signatures.csv").write_text("first,second\nAAA,BBB\nBBB,CCC\nZZZ,\n")
    return folder / "cohort.csv"
