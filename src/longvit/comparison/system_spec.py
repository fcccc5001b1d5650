"""Who takes part in a comparison: a system and what it is given. Light to import: the command line reads it.

clam_sb               the tiles                          published tables call it "image"
snn                   the omics                          "genomic"
mcat                  the tiles and the six signatures   "image+genomic"
deep_sets+concat      the tiles and the one omic vector, fused late (also +bilinear): "w/ genomic features"
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from longvit.baselines.catalogue import SYSTEMS
from longvit.errors import InputError

FUSED = ("concat", "bilinear")
OF_OMICS_ALONE, OF_SIGNATURES = ("snn",), ("mcat",)
_PUBLISHED_WITH_GENES = ("deep_sets", "attention_mil", "deep_attn_misl")


@dataclass(frozen=True)
class SystemSpec:
    """A system with or without a fusion."""

    system: str
    """A name of `baselines.catalogue.SYSTEMS`."""
    fusion: str | None = None
    """concat or bilinear: the omics join the tiles."""

    @property
    def name(self) -> str:
        """As on the command line, in tables and folders."""
        return self.system + (f"+{self.fusion}" if self.fusion else "")

    @property
    def reads_tiles(self) -> bool:
        """Whether there must be features of tiles."""
        return self.system not in OF_OMICS_ALONE

    @property
    def reads_omics(self) -> bool:
        """Whether there must be omics."""
        return self.fusion is not None or self.system in (*OF_OMICS_ALONE, *OF_SIGNATURES)

    @property
    def inputs(self) -> str:
        """image, genomic or image+genomic, as the published tables have it."""
        return "+".join(["image"] * self.reads_tiles + ["genomic"] * self.reads_omics)


def system_spec(text: str) -> SystemSpec:
    """`deep_sets+concat` read; `InputError` names the nearest system."""
    system, _, fusion = text.partition("+")
    if system not in SYSTEMS:
        near = difflib.get_close_matches(system, list(SYSTEMS), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? There are" if near else "choose"
        raise InputError(f"system {system!r}: {hint} {', '.join(SYSTEMS)}")
    if fusion and fusion not in FUSED:
        raise InputError(f"system {text!r}: behind + stands {' or '.join(FUSED)}")
    if fusion and system in (*OF_OMICS_ALONE, *OF_SIGNATURES):
        raise InputError(f"system {text!r}: {system} takes omics in its own way; leave +{fusion} away")
    return SystemSpec(system, fusion or None)


def all_system_specs(*, tiles: bool, omics: bool, signatures: bool) -> tuple[SystemSpec, ...]:
    """Everyone who can take part with what is there; fusions are those of the published rows."""
    found = [
        SystemSpec(name)
        for name in SYSTEMS
        if (tiles or name in OF_OMICS_ALONE)
        and (omics or name not in (*OF_OMICS_ALONE, *OF_SIGNATURES))
        and (signatures or name not in OF_SIGNATURES)
    ]
    if tiles and omics:
        found += [SystemSpec(name, "concat") for name in _PUBLISHED_WITH_GENES]
    return tuple(found)
