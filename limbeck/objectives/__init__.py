"""Objectives: Signals of student and teacher (and the batch) to a scalar loss with named parts."""

from limbeck.objectives.base import Loss, Objective, Sum
from limbeck.objectives.features import EmbeddingDistance, Hint
from limbeck.objectives.large_vocabulary import LargeVocabulary
from limbeck.objectives.mixing import MatrixOrientation
from limbeck.objectives.relations import SimilarityDistillation, TokenRelations
from limbeck.objectives.routing import ExpertBalance
from limbeck.objectives.selection import ExcessTargets
from limbeck.objectives.targets import CrossEntropy, MeanSquaredError, SoftTargets

__all__ = [
    "CrossEntropy",
    "EmbeddingDistance",
    "ExcessTargets",
    "ExpertBalance",
    "Hint",
    "LargeVocabulary",
    "Loss",
    "MatrixOrientation",
    "MeanSquaredError",
    "Objective",
    "SimilarityDistillation",
    "SoftTargets",
    "Sum",
    "TokenRelations",
]
