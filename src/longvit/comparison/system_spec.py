"""System spec: a system and its inputs, as text `clam_sb+concat`. Light to import, for the command line.

clam_sb               the tiles                          published tables call it "image"
snn                   the omics                          "genomic"
mcat                  the tiles and the six signatures   "image+genomic"
feather               the tiles, from published weights  "image"
patch_sampling        the pixels of the tiles            "image"
deep_sets+concat      the tiles and one omic vector, late fusion (also +bilinear): "w/ genomic features"
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from longvit.baselines.catalogue import SYSTEMS
from longvit.errors import InputError

FUSED = ("concat", "bilinear")
OF_OMICS_ALONE, OF_SIGNATURES, OF_PIXELS = ("snn",), ("mcat",), ("patch_sampling",)
PRETRAINED = ("feather",)
_PUBLISHED_WITH_GENES = ("deep_sets", "attention_mil", "deep_attn_misl")


@dataclass(frozen=True)
class SystemSpec:
    """System with an optional fusion of omics."""

    system: str
    """Name in `baselines.catalogue.SYSTEMS`."""
    fusion: str | None = None
    """Fusion of omics and tiles: concat or bilinear."""

    @property
    def name(self) -> str:
        """Name on the command line, in tables and of folders."""
        return self.system + (f"+{self.fusion}" if self.fusion else "")

    @property
    def reads_tiles(self) -> bool:
        """True where the system needs tile features."""
        return self.system not in OF_OMICS_ALONE

    @property
    def reads_pixels(self) -> bool:
        """True where the system needs the slide files."""
        return self.system in OF_PIXELS

    @property
    def reads_omics(self) -> bool:
        """True where the system needs omics."""
        return self.fusion is not None or self.system in (*OF_OMICS_ALONE, *OF_SIGNATURES)

    @property
    def inputs(self) -> str:
        """Inputs as in the published tables: image, genomic or image+genomic."""
        return "+".join(["image"] * self.reads_tiles + ["genomic"] * self.reads_omics)


def system_spec(text: str) -> SystemSpec:
    """Parses a system spec such as `deep_sets+concat`; `InputError` names the nearest system."""
    system, _, fusion = text.partition("+")
    if system not in SYSTEMS:
        near = difflib.get_close_matches(system, list(SYSTEMS), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? There are" if near else "choose"
        raise InputError(f"system {system!r}: {hint} {', '.join(SYSTEMS)}")
    if fusion and fusion not in FUSED:
        raise InputError(f"system {text!r}: after '+', expected {' or '.join(FUSED)}")
    if fusion and system in (*OF_OMICS_ALONE, *OF_SIGNATURES):
        raise InputError(f"system {text!r}: {system} already uses omics; remove +{fusion}")
    return SystemSpec(system, fusion or None)


def all_system_specs(*, tiles: bool, omics: bool, signatures: bool) -> tuple[SystemSpec, ...]:
    """Specs of all systems that can run on these inputs; fusions are those of the published rows.

    Systems that read the slide files, or start from a checkpoint, are left out: features alone may be present. They are
    named explicitly.
    """
    specs = [
        SystemSpec(name)
        for name in SYSTEMS
        if name not in (*OF_PIXELS, *PRETRAINED)
        and (tiles or name in OF_OMICS_ALONE)
        and (omics or name not in (*OF_OMICS_ALONE, *OF_SIGNATURES))
        and (signatures or name not in OF_SIGNATURES)
    ]
    if tiles and omics:
        specs += [SystemSpec(name, "concat") for name in _PUBLISHED_WITH_GENES]
    return tuple(specs)
