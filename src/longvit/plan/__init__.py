"""What a training step will take, before anything runs: memory, communication, arithmetic, a floor for its time."""

from longvit.plan.feasibility import Plan, PlanSettings, plan

__all__ = ["Plan", "PlanSettings", "plan"]
