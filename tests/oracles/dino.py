"""DINO in float64 NumPy, written from the equations of Caron et al. 2021 and its pseudo-code alone; loops, no tricks.

Nothing here is shared with the package. Schedules are the arrays of a whole run.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def log_softmax(x: Array) -> Array:
    shifted = x - x.max()
    return shifted - math.log(np.exp(shifted).sum())


def loss(
    student: Array, teacher: Array, center: Array, student_temperature: float, teacher_temperature: float
) -> float:
    """student (C, B, K), teacher (G, B, K), center (K): the mean over pairs of different crops and over the batch."""
    terms = []
    for t in range(len(teacher)):
        for v in range(len(student)):
            if v == t:
                continue
            for b in range(teacher.shape[1]):
                p = softmax((teacher[t, b] - center) / teacher_temperature)
                terms.append(-float(p @ log_softmax(student[v, b] / student_temperature)))
    return float(np.mean(terms))


def gradient(
    student: Array, teacher: Array, center: Array, student_temperature: float, teacher_temperature: float
) -> Array:
    """(C, B, K): of the cross-entropy of a softmax, (softmax − target) / τ, summed over the pairs."""
    crops, regions = student.shape[:2]
    found, pairs = np.zeros_like(student), 0
    for t in range(len(teacher)):
        for v in range(crops):
            if v == t:
                continue
            pairs += 1
            for b in range(regions):
                p = softmax((teacher[t, b] - center) / teacher_temperature)
                found[v, b] += (softmax(student[v, b] / student_temperature) - p) / student_temperature
    return found / (pairs * regions)


def next_center(center: Array, teacher: Array, momentum: float) -> Array:
    """teacher (G, B, K): C ← m C + (1 − m) mean."""
    return momentum * center + (1 - momentum) * teacher.reshape(-1, teacher.shape[-1]).mean(0)


def teacher_figures(teacher: Array, center: Array, temperature: float) -> dict[str, float]:
    """Mean entropy of the teacher's distributions; KL of each, and of their mean, to uniform, from KL's definition."""
    rows = [softmax((g - center) / temperature) for g in teacher.reshape(-1, teacher.shape[-1])]
    k = teacher.shape[-1]

    def entropy(p: Array) -> float:
        return -sum(float(x) * math.log(x) for x in p if x > 0)

    def kl_to_uniform(p: Array) -> float:
        return sum(float(x) * math.log(x * k) for x in p if x > 0)

    return {
        "teacher_entropy": float(np.mean([entropy(p) for p in rows])),
        "kl_to_uniform": float(np.mean([kl_to_uniform(p) for p in rows])),
        "mean_kl_to_uniform": kl_to_uniform(np.mean(rows, 0)),
    }


def cosine_schedule(base: float, final: float, steps: int, warmup_steps: int = 0) -> Array:
    """A linear rise from 0 to `base`, both included, then half a cosine to `final`, whose end point is left out."""
    rise = np.linspace(0, base, warmup_steps)
    i = np.arange(steps - warmup_steps)
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / max(1, len(i))))
    return np.concatenate([rise, fall])


def temperature_schedule(first: float, last: float, warmup_epochs: int, epochs: int, steps_per_epoch: int) -> Array:
    """One value per epoch, repeated for its steps."""
    per_epoch = [*np.linspace(first, last, warmup_epochs), *([last] * (epochs - warmup_epochs))]
    return np.repeat(np.array(per_epoch), steps_per_epoch)


def averages(teacher: Array, students: list[Array], momenta: Array) -> list[Array]:
    """θ_t after each step, from its start and the student's weights after each step."""
    found = []
    for student, m in zip(students, momenta, strict=True):
        teacher = m * teacher + (1 - m) * student
        found.append(teacher)
    return found


def head(x: Array, layers: list[tuple[Array, Array]], prototypes: Array) -> Array:
    """x (B, D); layers: (weight, bias) of the MLP; prototypes (K, I) → cosines (B, K)."""
    for i, (w, b) in enumerate(layers):
        if i:
            x = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        x = x @ w.T + b
    x = x / np.sqrt((x**2).sum(1, keepdims=True))
    return x @ (prototypes / np.sqrt((prototypes**2).sum(1, keepdims=True))).T
