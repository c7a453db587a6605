"""Pruning: importance scores, dependency groups, depth and sparsity."""

from limbeck.pruning.importance import ActivationNorm, BatchNormScale, Magnitude, Random, Taylor
from limbeck.pruning.structured import Prune

__all__ = ["ActivationNorm", "BatchNormScale", "Magnitude", "Prune", "Random", "Taylor"]
