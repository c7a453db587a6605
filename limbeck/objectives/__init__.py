"""Objectives: Signals of student and teacher (and the batch) to a scalar loss with named parts."""

from limbeck.objectives.targets import CrossEntropy, SoftTargets

__all__ = ["CrossEntropy", "SoftTargets"]
