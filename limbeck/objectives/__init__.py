"""Objectives: Signals of student and teacher (and the batch) to a scalar loss with named parts."""

from limbeck.objectives.base import Loss, Objective, Sum
from limbeck.objectives.contrastive import MemoryContrast, MutualInformation
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
from limbeck.objectives.features import (
    AttentionTransfer,
    EmbeddingDistance,
    Hint,
    MarginHint,
    NeuronSelectivity,
    NormDirection,
    ReviewHints,
    SingularHints,
    VariationalHint,
)
from limbeck.objectives.large_vocabulary import LargeVocabulary
from limbeck.objectives.layers import layer_map, over_layers
from limbeck.objectives.mixing import MatrixOrientation
from limbeck.objectives.partitions import DecoupledKD, EnhancedTargets, NormalizedKD, UniversalSelfKD
from limbeck.objectives.privacy import ShieldedTargets
from limbeck.objectives.relations import (
    AngleRelations,
    DistanceRelations,
    FeatureCorrelation,
    GramInformation,
    KernelAlignment,
    SimilarityDistillation,
    TokenRelations,
)
from limbeck.objectives.routing import ExpertBalance
from limbeck.objectives.selection import ExcessTargets
from limbeck.objectives.targets import BalancedDivergence, CrossEntropy, MeanSquaredError, MixedTargets, SoftTargets

__all__ = [
    "AdaptiveKL",
    "AngleRelations",
    "AtExit",
    "AttentionTransfer",
    "BalancedDivergence",
    "CorrelationTargets",
    "CrossEntropy",
    "DecoupledKD",
    "DistanceRelations",
    "EmbeddingDistance",
    "EnhancedTargets",
    "ExcessTargets",
    "ExpertBalance",
    "FeatureCorrelation",
    "GramInformation",
    "Hint",
    "JensenShannon",
    "KernelAlignment",
    "LargeVocabulary",
    "Loss",
    "MarginHint",
    "MatrixOrientation",
    "MeanSquaredError",
    "MemoryContrast",
    "MixedTargets",
    "MutualInformation",
    "NeuronSelectivity",
    "NormDirection",
    "NormalizedKD",
    "Objective",
    "ReverseKL",
    "ReviewHints",
    "ShieldedTargets",
    "SimilarityDistillation",
    "SingularHints",
    "SkewKL",
    "SoftTargets",
    "StandardizedTargets",
    "Sum",
    "SymmetricKL",
    "TokenRelations",
    "TotalVariation",
    "TransformedTargets",
    "UniversalSelfKD",
    "VariationalHint",
    "WeightedSoftTargets",
    "layer_map",
    "over_layers",
]
