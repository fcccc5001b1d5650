"""Alarms: each collapse is named with its numbers, and a run that learns, is young or warms up is left in peace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longvit.dino.loss import DinoLoss, mean_kl_to_uniform
from longvit.dino.settings import DinoSettings
from longvit.dino.student_teacher import StudentTeacher
from longvit.model.longvit import LongViTConfig
from longvit.pretraining.collapse import WINDOW_STEPS, alarms

K = 4096
LOG_K = math.log(K)
PER_EPOCH = 30
SETTINGS = DinoSettings(epochs=20, warmup_epochs=2, prototypes=K)


def history(epochs: int = 20, **changed: np.ndarray | float) -> dict[str, np.ndarray]:
    """A run that learns: it starts near uniform, sharpens, and tells 16 crops apart."""
    n = epochs * PER_EPOCH
    t = np.linspace(0, 1, n)
    rng = np.random.default_rng(0)
    kl = 0.1 + 4.5 * t
    told = np.minimum(0.8 * kl, 0.8 * math.log(16))
    columns = {
        "loss": LOG_K * (1 - 0.5 * t**0.5),
        "grad_norm": 1 + 2 * t,
        "kl_to_uniform": kl,
        "mean_kl_to_uniform": kl - told,
        **changed,
    }
    noise = rng.normal(1, 0.02, n)
    return {name: np.broadcast_to(values, n) * noise for name, values in columns.items()}


def rows(epochs: int = 20, **changed: list[float]) -> list[dict[str, float]]:
    """Figures of the epochs of such a run."""
    t = np.linspace(0, 1, epochs)
    columns = {"rankme": 5 + 40 * t, "feature_std": 0.2 + 0.4 * t, "knn_balanced": 0.4 + 0.3 * t, **changed}
    return [
        {"epoch": float(i + 1), "step": float((i + 1) * PER_EPOCH), **{k: float(v[i]) for k, v in columns.items()}}
        for i in range(epochs)
    ]


def names(*of: object, settings: DinoSettings = SETTINGS) -> list[str]:
    return [alarm.name for alarm in alarms(*of, settings)]  # type: ignore[arg-type]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 10, 20])
def test_a_run_that_learns_is_left_in_peace_at_every_age(epochs: int) -> None:
    whole, all_rows = history(), rows()
    young = {name: values[: epochs * PER_EPOCH] for name, values in whole.items()}
    assert names(young, all_rows[:epochs]) == []


def test_without_an_epoch_there_is_nothing_to_judge() -> None:
    assert names(history(), []) == []


def test_uniform_outputs_are_named_with_both_numbers() -> None:
    (alarm,) = alarms(history(kl_to_uniform=0.01, mean_kl_to_uniform=0.009, loss=LOG_K), rows(), SETTINGS)
    assert alarm.name == "uniform outputs"
    assert f"log K = {LOG_K:.3f}" in alarm.seen
    assert f"{LOG_K - 0.01:.2f}" in alarm.seen
    assert "0.04" in alarm.advice


def test_one_output_for_all_crops_is_named() -> None:
    one = history(kl_to_uniform=LOG_K - 0.05, mean_kl_to_uniform=LOG_K - 0.06, loss=0.1)
    (alarm,) = alarms(one, rows(), SETTINGS)
    assert alarm.name == "the same output for every crop"
    assert "0.9" in alarm.advice
    few = history(kl_to_uniform=LOG_K - math.log(8), mean_kl_to_uniform=LOG_K - math.log(8), loss=2.1)
    assert names(few, rows()) == ["the same output for every crop"]


def test_two_regions_a_step_with_a_prototype_each_are_no_collapse() -> None:
    """The least that outputs of the paper's 65,536 prototypes can tell of their crops."""
    paper = DinoSettings(epochs=20, warmup_epochs=2)
    log_k = math.log(paper.prototypes)
    sharp = history()
    sharp["kl_to_uniform"][:], sharp["mean_kl_to_uniform"][:] = log_k, log_k - math.log(2)
    assert names(sharp, rows(), settings=paper) == []


def test_a_student_that_guesses_before_a_teacher_that_does_not() -> None:
    assert names(history(loss=LOG_K * 1.02), rows()) == ["the student guesses"]


def test_a_collapse_in_the_warm_up_is_not_judged_yet() -> None:
    bad = history(4, kl_to_uniform=0.001, mean_kl_to_uniform=0.001, loss=LOG_K)
    assert names(bad, rows(4), settings=DinoSettings(epochs=20, warmup_epochs=4, prototypes=K)) == []
    assert names(bad, rows(4), settings=DinoSettings(epochs=20, warmup_epochs=1, prototypes=K)) == ["uniform outputs"]


def test_gradients_that_explode_are_named_and_those_that_grow_are_not() -> None:
    norms = np.ones(20 * PER_EPOCH)
    norms[-80:] = 40
    (alarm,) = alarms(history(grad_norm=norms), rows(), SETTINGS)
    assert alarm.name == "exploding gradients"
    assert "40 times" in alarm.seen
    assert names(history(grad_norm=np.linspace(1, 8, 20 * PER_EPOCH)), rows()) == []


def test_one_wild_or_skipped_step_is_no_alarm() -> None:
    wild = history()
    wild["grad_norm"][-3] = 1e6
    for values in wild.values():
        values[-10] = math.nan
    assert names(wild, rows()) == []


def test_a_rank_that_falls_names_the_better_epoch() -> None:
    ranks = [*np.linspace(5, 50, 12), *np.linspace(48, 10, 8)]
    (alarm,) = alarms(history(), rows(rankme=ranks), SETTINGS)
    assert alarm.name == "low rank"
    assert "is 10.0; its highest since the warm-up was 50.0, after epoch 12" in alarm.seen


def test_a_rank_that_falls_to_a_third_or_fell_in_the_warm_up_is_no_alarm() -> None:
    assert names(history(), rows(rankme=[*np.linspace(5, 30, 12), *np.linspace(28, 10, 8)])) == []
    assert names(history(), rows(rankme=[80.0, 70.0, *[15.0] * 18])) == []


def test_a_rank_of_one_is_named_though_it_never_was_higher() -> None:
    assert names(history(), rows(rankme=[1.2] * 20)) == ["low rank"]


def test_constant_embeddings_are_named() -> None:
    assert names(history(), rows(feature_std=[0.2] * 10 + [0.001] * 10)) == ["constant embeddings"]


def test_a_falling_knn_is_named_and_a_jumping_one_is_not() -> None:
    falls = [*np.linspace(0.4, 0.7, 10), *np.linspace(0.68, 0.5, 10)]
    (alarm,) = alarms(history(), rows(knn_balanced=falls), SETTINGS)
    assert alarm.name == "falling k-NN"
    assert "51%" in alarm.seen
    assert names(history(), rows(knn_balanced=[0.5, 0.58] * 10)) == []


def test_epochs_that_were_not_looked_at_are_passed_over() -> None:
    sparse = rows()
    for row in sparse[1::2]:
        for name in ("rankme", "feature_std", "knn_balanced"):
            del row[name]
    assert names(history(), sparse) == []


def test_a_random_network_before_it_has_learned_raises_no_alarm() -> None:
    """The figures of the very first steps, repeated until they would be judged without a warm-up."""
    torch.manual_seed(0)
    settings = DinoSettings(
        epochs=2, warmup_epochs=1, prototypes=512, head_hidden=64, head_bottleneck=32, local_crops=0, drop_path=0
    )
    config = LongViTConfig(embed_dim=32, depth=2, num_heads=2, ffn_dim=64)
    networks, loss = StudentTeacher(config, settings), DinoLoss(settings.prototypes)
    crops = [torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    with torch.no_grad():
        terms = loss(*networks(crops), teacher_temperature=settings.teacher_temperature)
    first = {name: float(value) for name, value in {"loss": terms.loss, **terms.metrics()}.items()}
    first["mean_kl_to_uniform"] = float(mean_kl_to_uniform(terms.statistics))
    steps = {name: np.full(WINDOW_STEPS, value) for name, value in {**first, "grad_norm": 1.0}.items()}
    epoch = {"epoch": 1.0, "step": float(WINDOW_STEPS), "rankme": 1.2, "feature_std": 0.05, "knn_balanced": 0.5}
    assert alarms(steps, [epoch], settings) == ()
