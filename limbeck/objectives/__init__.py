"""Objectives: Signals of student and teacher (and the batch) to a scalar loss with named parts."""

from limbeck.objectives.base import Loss, Objective, Sum
from limbeck.objectives.contrastive import MutualInformation
from limbeck.objectives.features import EmbeddingDistance, Hint
from limbeck.objectives.relations import SimilarityDistillation, TokenRelations
from limbeck.objectives.routing import ExpertBalance
from limbeck.objectives.targets import CrossEntropy, MeanSquaredError, SoftTargets

__all__ = [
    "CrossEntropy",
    "EmbeddingDistance",
    "ExpertBalance",
    "Hint",
    "Loss",
    "MeanSquaredError",
    "MutualInformation",
    "Objective",
    "SimilarityDistillation",
    "SoftTargets",
    "Sum",
    "TokenRelations",
]
