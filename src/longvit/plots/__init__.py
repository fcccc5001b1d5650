"""Plots drawn from predictions and metrics."""
