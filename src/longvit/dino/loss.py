"""Loss of DINO (Caron et al. 2021, arXiv 2104.14294, equations 1–4): the student predicts the teacher's output.

    P_t = softmax((g_t − c) / τ_t)          for the global crops t,  c: the centre
    L   = 1/|pairs| Σ_t Σ_{v ≠ t} mean over the batch of −Σ_k P_t[k] log softmax(g_v / τ_s)[k]
    c  ← m c + (1 − m) mean of g_t over crops and batch

Differences from the authors' code: the sum over the pairs is computed once per student crop, with the sum of the
teacher's probabilities of the other crops as its target. The softmax of the student is never stored; its gradient is
computed in one pass. Memory is the student's and the teacher's outputs, the teacher's probabilities and, in backward,
the gradient; everything else is a few rows at a time. Arithmetic is at least float32, whatever the outputs are.

The batch statistics are means over the samples of one call. Those of an optimiser step, over accumulated calls and the
data axis of the mesh, are their means weighted by samples, computed by the training loop. The ranks of a sequence have
the same crops.

    from longvit.dino.loss import DinoLoss
    loss = DinoLoss(prototypes=65_536)
    terms = loss(student, teacher, teacher_temperature=0.04)    # (C·B, K), (G·B, K)
    terms.loss.backward()
    loss.update_center(terms.statistics)                        # after the optimiser's step

B regions of this rank, C crops, G global crops (the first), K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK_NUMBERS = 2**22  # of rows processed together: 16 MB in float32


@dataclass(frozen=True)
class DinoTerms:
    """Loss and statistics of one batch.

    - `loss`: scalar, mean over the regions, with gradient.
    - `statistics`: (2, K) means over global crops and regions of the teacher's outputs and of its probabilities P_t.
    - `teacher_entropy`: mean entropy of P_t, 0 … log K nats.
    - `kl_to_uniform`: log K − teacher_entropy, near 0 for uniform outputs (one of the two collapses).
    """

    loss: Tensor
    statistics: Tensor
    teacher_entropy: Tensor
    kl_to_uniform: Tensor

    def metrics(self) -> dict[str, Tensor]:
        """Scalars for the history, without gradient."""
        return {"teacher_entropy": self.teacher_entropy, "kl_to_uniform": self.kl_to_uniform}


def mean_kl_to_uniform(statistics: Tensor) -> Tensor:
    """Divergence from uniform of the mean of P_t over a step, 0 … log K nats.

    Near log K every crop is assigned to the same few prototypes (the other collapse).
    """
    mean = statistics[1]
    return math.log(len(mean)) + torch.special.xlogy(mean, mean).sum()


class DinoLoss(nn.Module):
    """The loss and its centre (a buffer with the name in the authors' checkpoints)."""

    def __init__(
        self, prototypes: int, *, student_temperature: float = 0.1, center_momentum: float = 0.9, global_crops: int = 2
    ) -> None:
        super().__init__()
        self.student_temperature, self.center_momentum = student_temperature, center_momentum
        self.global_crops = global_crops
        self.register_buffer("center", torch.zeros(1, prototypes))
        self.center: Tensor

    def forward(self, student: Tensor, teacher: Tensor, *, teacher_temperature: float) -> DinoTerms:
        """student: (C·B, K) crop by crop, the global ones first; teacher: (G·B, K), without gradient.

        The centre is that of the previous steps. It is not updated here, so a skipped step leaves it unchanged and an
        accumulated step updates it once. Raises ValueError for shapes that do not fit.
        """
        regions = self._regions(student, teacher)
        with torch.no_grad(), torch.autocast(teacher.device.type, enabled=False):
            targets, sums = _targets(teacher.detach(), self.center, teacher_temperature)
        with torch.autocast(student.device.type, enabled=False):
            loss = _CrossEntropy.apply(student, targets, regions, self.global_crops, self.student_temperature)
        k = teacher.shape[1]
        means = sums / len(teacher)
        entropy = means[2 * k]
        return DinoTerms(loss, means[: 2 * k].view(2, k), entropy, math.log(k) - entropy)

    @torch.no_grad()
    def update_center(self, statistics: Tensor) -> None:
        """Updates the centre after the optimiser's step, with the `statistics` of all its samples (2, K)."""
        self.center.lerp_(statistics[:1].to(self.center), 1 - self.center_momentum)

    def _regions(self, student: Tensor, teacher: Tensor) -> int:
        g, k = self.global_crops, self.center.shape[1]
        regions, remainder = divmod(len(teacher), g)
        if student.ndim != 2 or teacher.ndim != 2 or {student.shape[1], teacher.shape[1]} != {k}:
            raise ValueError(f"outputs must be (crops, {k}), got {tuple(student.shape)} and {tuple(teacher.shape)}")
        if (
            remainder
            or not regions
            or len(student) % regions
            or len(student) < g * regions
            or len(student) < 2 * regions
        ):
            raise ValueError(
                f"{len(student)} rows of the student for {len(teacher)} of the teacher: these are {g} global crops of "
                "each region, those all its crops, two at least"
            )
        return regions


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(start: int, end: int, k: int) -> Iterator[slice]:
    step = max(1, _CHUNK_NUMBERS // k)
    for i in range(start, end, step):
        yield slice(i, min(i + step, end))


def _targets(teacher: Tensor, center: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Teacher's probabilities P (G·B, K), and sums over the rows [Σ outputs (K), Σ P (K), Σ entropy]."""
    n, k = teacher.shape
    dtype = _wide(teacher.dtype)
    targets, sums = teacher.new_empty(n, k, dtype=dtype), teacher.new_zeros(2 * k + 1, dtype=dtype)
    for c in _chunks(0, n, k):
        rows = teacher[c].to(dtype)
        sums[:k] += rows.sum(0)
        log_p = torch.log_softmax((rows - center.to(dtype)).div_(temperature), -1)
        p = torch.exp(log_p, out=targets[c])
        sums[k : 2 * k] += p.sum(0)
        sums[2 * k] -= log_p.mul_(p).sum()
    return targets, sums


class _CrossEntropy(torch.autograd.Function):
    """Mean over pairs and regions; stores the student's outputs in their dtype and one log-sum-exp per row."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, targets: Tensor, regions: int, global_crops: int, temperature: float
    ) -> Tensor:
        n, k = student.shape
        lse, total = targets.new_empty(n, 1), targets.new_zeros(())
        for crop in range(n // regions):
            for c in _chunks(crop * regions, (crop + 1) * regions, k):
                x = student[c].to(targets.dtype).div(temperature)
                lse[c] = torch.logsumexp(x, -1, keepdim=True)
                x -= lse[c]
                total -= x.mul_(_target(targets, regions, global_crops, crop, c)).sum()
        ctx.save_for_backward(student, targets, lse)
        ctx.settings = regions, global_crops, temperature
        return total / _weight(n, regions, global_crops)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        student, targets, lse = ctx.saved_tensors
        regions, global_crops, temperature = ctx.settings
        n, k = student.shape
        scale = grad / (_weight(n, regions, global_crops) * temperature)
        grads = torch.empty_like(student)
        for crop in range(n // regions):
            others = global_crops - (crop < global_crops)  # the sum of this crop's target
            for c in _chunks(crop * regions, (crop + 1) * regions, k):
                x = (
                    torch.div(student[c], temperature, out=grads[c])
                    if student.dtype == targets.dtype
                    else (student[c].to(targets.dtype).div_(temperature))
                )
                x.sub_(lse[c]).exp_().mul_(others).sub_(_target(targets, regions, global_crops, crop, c)).mul_(scale)
                if x.dtype != grads.dtype:
                    grads[c] = x
        return grads, None, None, None, None


def _target(targets: Tensor, regions: int, global_crops: int, crop: int, rows: slice) -> Tensor:
    """Target of a crop: Σ of P_t over the global crops t other than `crop`, for rows of that crop."""
    first, count = rows.start - crop * regions, rows.stop - rows.start
    parts = [targets[t * regions + first : t * regions + first + count] for t in range(global_crops) if t != crop]
    if not parts:  # there is no other global crop
        return targets.new_zeros(())
    return parts[0] if len(parts) == 1 else torch.add(*parts) if len(parts) == 2 else torch.stack(parts).sum(0)


def _weight(rows: int, regions: int, global_crops: int) -> int:
    """Number of pairs of a teacher's and another crop, times regions."""
    return global_crops * (rows // regions - 1) * regions
