"""Pattern of dilated attention: its branches, and its rules for gradients and for short segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DilatedPattern:
    """Branches of dilated attention with two switches.

    Attributes:
        segment_lengths: w_i ≥ 1, tokens, one per branch.
        dilated_ratios: r_i ≥ 1, one per branch.
        gradient: "exact", or "detached": the mixing weights are constants in the backward, as in the authors' code.
        ragged: "masked": a shorter last segment is simply shorter. "padded": zero keys fill it up and take part in the
            softmax, as in the authors' code.

    Raises:
        ValueError: settings that do not fit together, with both numbers.
    """

    segment_lengths: tuple[int, ...]
    dilated_ratios: tuple[int, ...]
    gradient: Literal["exact", "detached"] = "exact"
    ragged: Literal["masked", "padded"] = "masked"

    def __post_init__(self) -> None:
        if len(self.segment_lengths) != len(self.dilated_ratios) or not self.segment_lengths:
            raise ValueError(
                f"one dilated ratio per segment length and at least one of each; got {len(self.segment_lengths)} "
                f"segment lengths, {len(self.dilated_ratios)} ratios"
            )
        for name, values in (("segment length", self.segment_lengths), ("dilated ratio", self.dilated_ratios)):
            if min(values) < 1:
                raise ValueError(f"every {name} must be at least 1, got {tuple(values)}")
        for name, value, known in (
            ("gradient", self.gradient, ("exact", "detached")),
            ("ragged", self.ragged, ("masked", "padded")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")

    @property
    def branches(self) -> tuple[tuple[int, int], ...]:
        """(segment length, dilated ratio) of each branch."""
        return tuple(zip(self.segment_lengths, self.dilated_ratios, strict=True))

    @property
    def detached(self) -> bool:
        return self.gradient == "detached"

    @property
    def padded(self) -> bool:
        return self.ragged == "padded"
