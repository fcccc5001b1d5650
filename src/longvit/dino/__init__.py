"""Self-distillation without labels (DINO; Caron et al. 2021, arXiv 2104.14294) of a LongViT: the mathematics alone."""

from longvit.dino.head import DinoHead, freeze_last_layer
from longvit.dino.loss import DinoLoss, DinoTerms, mean_kl_to_uniform
from longvit.dino.multicrop import Pack, drop_path_scales, features
from longvit.dino.schedules import Schedules
from longvit.dino.settings import DinoSettings
from longvit.dino.student_teacher import StudentTeacher, parameter_groups, set_rates

__all__ = [
    "DinoHead",
    "DinoLoss",
    "DinoSettings",
    "DinoTerms",
    "Pack",
    "Schedules",
    "StudentTeacher",
    "drop_path_scales",
    "features",
    "freeze_last_layer",
    "mean_kl_to_uniform",
    "parameter_groups",
    "set_rates",
]
