"""Plan of a training step before anything runs: memory, communication, arithmetic, a lower bound of its time."""

from longvit.plan.feasibility import Plan, PlanSettings, plan

__all__ = ["Plan", "PlanSettings", "plan"]
