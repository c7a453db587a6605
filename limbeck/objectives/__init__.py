"""Objectives: Signals of student and teacher (and the batch) to a scalar loss with named parts."""

from limbeck.objectives.adapters import OnSignal, PriorAdjusted, Scheduled, WhereCorrect
from limbeck.objectives.adversarial import Discriminator
from limbeck.objectives.base import Loss, Objective, Sum
from limbeck.objectives.calibrated import CalibratedTargets
from limbeck.objectives.contrastive import MutualInformation
from limbeck.objectives.distributions import (
    AdaptiveKL,
    CorrelationTargets,
    JensenShannon,
    ReverseKL,
    SkewKL,
    StandardizedTargets,
    SymmetricKL,
    TotalVariation,
    TransformedTargets,
    WeightedSoftTargets,
)
from limbeck.objectives.exits import AtExit
from limbeck.objectives.features import EmbeddingDistance, Hint
from limbeck.objectives.large_vocabulary import LargeVocabulary
from limbeck.objectives.mixing import MatrixOrientation
from limbeck.objectives.pairs import PairedContrast
from limbeck.objectives.partitions import DecoupledKD, EnhancedTargets, NormalizedKD, UniversalSelfKD
from limbeck.objectives.privacy import ShieldedTargets
from limbeck.objectives.relations import SimilarityDistillation, TokenRelations
from limbeck.objectives.routing import ExpertBalance
from limbeck.objectives.selection import ExcessTargets
from limbeck.objectives.self_distillation import LayeredSelfDistillation
from limbeck.objectives.targets import (
    BalancedDivergence,
    CrossEntropy,
    HardTargets,
    MeanSquaredError,
    MixedTargets,
    SoftTargets,
)

__all__ = [
    "AdaptiveKL",
    "AtExit",
    "BalancedDivergence",
    "CalibratedTargets",
    "CorrelationTargets",
    "CrossEntropy",
    "DecoupledKD",
    "Discriminator",
    "EmbeddingDistance",
    "EnhancedTargets",
    "ExcessTargets",
    "ExpertBalance",
    "HardTargets",
    "Hint",
    "JensenShannon",
    "LargeVocabulary",
    "LayeredSelfDistillation",
    "Loss",
    "MatrixOrientation",
    "MeanSquaredError",
    "MixedTargets",
    "MutualInformation",
    "NormalizedKD",
    "Objective",
    "OnSignal",
    "PairedContrast",
    "PriorAdjusted",
    "ReverseKL",
    "Scheduled",
    "ShieldedTargets",
    "SimilarityDistillation",
    "SkewKL",
    "SoftTargets",
    "StandardizedTargets",
    "Sum",
    "SymmetricKL",
    "TokenRelations",
    "TotalVariation",
    "TransformedTargets",
    "UniversalSelfKD",
    "WeightedSoftTargets",
    "WhereCorrect",
]
