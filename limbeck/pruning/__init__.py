"""Pruning: importance scores, dependency groups, depth, vocabulary and sparsity."""

from limbeck.pruning.depth import AngularDistance, EvenSpacing, PruneLayers
from limbeck.pruning.importance import ActivationNorm, BatchNormScale, Magnitude, Random, Taylor
from limbeck.pruning.sparsity import MaskKeeper, Sparsify, reapply_masks
from limbeck.pruning.structured import Prune
from limbeck.pruning.vocabulary import TrimmedEmbedding, TrimVocabulary, token_shares

__all__ = [
    "ActivationNorm",
    "AngularDistance",
    "BatchNormScale",
    "EvenSpacing",
    "Magnitude",
    "MaskKeeper",
    "Prune",
    "PruneLayers",
    "Random",
    "Sparsify",
    "Taylor",
    "TrimVocabulary",
    "TrimmedEmbedding",
    "reapply_masks",
    "token_shares",
]
