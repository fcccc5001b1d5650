"""The loss of DINO and its centre: against the equations in NumPy, in every dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.oracles import dino as oracle
from torch import Tensor

from longvit.dino import loss as loss_module
from longvit.dino.loss import DinoLoss, mean_kl_to_uniform


def outputs(crops: int, regions: int, k: int, global_crops: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student (C·B, K), teacher (G·B, K): as far apart as cosines are, and further."""
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(crops * regions, k, generator=g, dtype=torch.float64)
    return student, 0.5 * torch.randn(global_crops * regions, k, generator=g, dtype=torch.float64)


def numpy_of(rows: Tensor, regions: int) -> np.ndarray:
    """(crops · B, K) → (crops, B, K)."""
    return rows.detach().numpy().reshape(-1, regions, rows.shape[-1])


GRID = [
    (crops, regions, k, global_crops, student_temperature, teacher_temperature)
    for crops, regions, k, global_crops in ((2, 1, 2, 2), (2, 5, 7, 2), (10, 3, 33, 2), (3, 2, 8, 1), (5, 3, 16, 3))
    for student_temperature in (0.1, 0.25)
    for teacher_temperature in (0.04, 0.07)
]


@pytest.mark.parametrize("chunk_numbers", [1, 70, 2**22])
@pytest.mark.parametrize(("crops", "regions", "k", "global_crops", "student_t", "teacher_t"), GRID)
def test_loss_gradient_and_figures_are_those_of_the_equations(
    crops, regions, k, global_crops, student_t, teacher_t, chunk_numbers, monkeypatch
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_NUMBERS", chunk_numbers)
    student, teacher = outputs(crops, regions, k, global_crops)
    loss = DinoLoss(k, student_temperature=student_t, global_crops=global_crops).double()
    loss.center.copy_(torch.linspace(-0.2, 0.3, k))
    student.requires_grad_()
    terms = loss(student, teacher, teacher_temperature=teacher_t)
    (3 * terms.loss).backward()

    center = loss.center[0].numpy()
    arrays = numpy_of(student, regions), numpy_of(teacher, regions), center, student_t, teacher_t
    assert abs(terms.loss.item() - oracle.loss(*arrays)) <= 1e-10
    expected = 3 * oracle.gradient(*arrays)
    assert student.grad is not None
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(numpy_of(student.grad, regions), expected, rtol=0, atol=1e-10)
    for name, value in oracle.teacher_figures(numpy_of(teacher, regions), center, teacher_t).items():
        metrics = {**terms.metrics(), "mean_kl_to_uniform": mean_kl_to_uniform(terms.statistics)}
        assert abs(metrics[name].item() - value) <= 1e-10, name


@pytest.mark.parametrize(("crops", "global_crops"), [(2, 2), (5, 2), (3, 1), (4, 3)])
def test_gradient_of_the_loss_is_that_of_finite_differences(crops: int, global_crops: int) -> None:
    student, teacher = outputs(crops, 3, 6, global_crops)
    loss = DinoLoss(6, global_crops=global_crops).double()
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, teacher_temperature=0.05).loss, (0.3 * student).requires_grad_()
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_center_over_five_steps_is_the_running_mean_of_the_equation(momentum: float) -> None:
    loss, expected = DinoLoss(9, center_momentum=momentum).double(), np.zeros(9)
    for step in range(5):
        student, teacher = outputs(4, 3, 9, seed=step)
        terms = loss(student, teacher, teacher_temperature=0.04)
        value = oracle.loss(numpy_of(student, 3), numpy_of(teacher, 3), expected, 0.1, 0.04)
        assert abs(terms.loss.item() - value) <= 1e-10, "the loss takes the centre of the steps before"
        loss.update_center(terms.statistics)
        expected = oracle.next_center(expected, numpy_of(teacher, 3), momentum)
        np.testing.assert_allclose(loss.center[0].numpy(), expected, rtol=0, atol=1e-10)


def test_a_step_that_is_skipped_leaves_the_center_alone() -> None:
    loss = DinoLoss(9).double()
    student, teacher = outputs(4, 3, 9)
    terms = loss(student, teacher * float("nan"), teacher_temperature=0.04)
    assert terms.loss.isnan()
    assert not loss.center.any()


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = outputs(4, 3, 9)
    student.requires_grad_()
    teacher.requires_grad_()
    DinoLoss(9).double()(student, teacher, teacher_temperature=0.04).loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_outputs_of_half_precision_lose_nothing_in_the_loss(dtype: torch.dtype) -> None:
    student, teacher = (t.to(dtype) for t in outputs(4, 3, 40))
    exact_student = student.double().requires_grad_()
    student.requires_grad_()
    terms = DinoLoss(40)(student, teacher, teacher_temperature=0.04)
    exact = DinoLoss(40).double()(exact_student, teacher.double(), teacher_temperature=0.04)
    terms.loss.backward()
    exact.loss.backward()
    assert terms.loss.dtype == terms.statistics.dtype == torch.float32
    assert abs(terms.loss.item() - exact.loss.item()) <= 1e-5
    assert student.grad is not None
    assert exact_student.grad is not None
    error = (student.grad.double() - exact_student.grad).abs().max()
    # its own rounding, and that of exponents up to 32 in float32
    allowed = torch.finfo(dtype).eps * exact_student.grad.abs().max() + 32 * torch.finfo(torch.float32).eps
    assert error <= allowed


def test_outputs_are_left_as_they_were_and_backward_twice_gives_the_same() -> None:
    student, teacher = outputs(4, 3, 9)
    before = student.clone(), teacher.clone()
    student.requires_grad_()
    loss = DinoLoss(9).double()(student, teacher, teacher_temperature=0.04).loss
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(loss, student)
    assert torch.equal(first, second)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_uniform_and_one_prototype_for_all_are_told_apart_as_collapses() -> None:
    log_k, student = np.log(16), torch.zeros(12, 16, dtype=torch.float64)
    loss = DinoLoss(16).double()
    uniform = loss(student, torch.zeros(6, 16, dtype=torch.float64), teacher_temperature=0.04)
    assert abs(uniform.kl_to_uniform) < 1e-12
    assert abs(mean_kl_to_uniform(uniform.statistics)) < 1e-12
    one = torch.zeros(6, 16, dtype=torch.float64)
    one[:, 3] = 5.0
    same = loss(student, one, teacher_temperature=0.04)
    assert abs(mean_kl_to_uniform(same.statistics) - log_k) < 1e-6
    assert abs(same.teacher_entropy) < 1e-6
    spread = loss(student, 5 * torch.eye(16, dtype=torch.float64)[:6], teacher_temperature=0.04)
    assert spread.teacher_entropy < 1e-6
    assert abs(mean_kl_to_uniform(spread.statistics) - np.log(16 / 6)) < 1e-6


@pytest.mark.parametrize("shapes", [((8, 9), (3, 9)), ((9, 9), (4, 9)), ((8, 8), (4, 9)), ((4, 9), (0, 9))])
def test_outputs_that_do_not_fit_are_refused_with_both_numbers(shapes) -> None:
    with pytest.raises(ValueError, match=r"rows of the student for \d of the teacher|outputs must be"):
        DinoLoss(9)(torch.zeros(shapes[0]), torch.zeros(shapes[1]), teacher_temperature=0.04)
