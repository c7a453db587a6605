"""Objectives: Signals of student and teacher (and the batch) to a scalar loss with named parts."""

from limbeck.objectives.adapters import AtPlaces, OnSignal, PriorAdjusted, Scheduled, WhereCorrect
from limbeck.objectives.base import Loss, Objective, Sum
from limbeck.objectives.contrastive import MemoryContrast, MutualInformation
from limbeck.objectives.exits import AtExit
from limbeck.objectives.features import (
    AttentionTransfer,
    EmbeddingDistance,
    Hint,
    MarginHint,
    MaskedHints,
    NeuronSelectivity,
    NormDirection,
    ReviewHints,
    SingularHints,
    VariationalHint,
)
from limbeck.objectives.layers import layer_map, nearest_layer, over_layers
from limbeck.objectives.logits.adversarial import Discriminator
from limbeck.objectives.logits.ambiguity import DeviationAware
from limbeck.objectives.logits.batchwise import CorrelationTargets, MultiLevelTargets, SinkhornTargets
from limbeck.objectives.logits.binary import BinaryTargets
from limbeck.objectives.logits.calibrated import CalibratedTargets
from limbeck.objectives.logits.distributions import (
    AdaptiveKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SymmetricKL,
    TopKTargets,
    TotalVariation,
    TransformedTargets,
    WeightedSoftTargets,
)
from limbeck.objectives.logits.information import ConditionalInformation
from limbeck.objectives.logits.interpolation import InterpolatedTargets
from limbeck.objectives.logits.large_vocabulary import LargeVocabulary
from limbeck.objectives.logits.partitions import DecoupledKD, EnhancedTargets, NormalizedKD, UniversalSelfKD
from limbeck.objectives.logits.privacy import ShieldedTargets
from limbeck.objectives.logits.ranking import RankedTargets
from limbeck.objectives.logits.selection import ExcessTargets
from limbeck.objectives.logits.standardized import Standardized, StandardizedTargets
from limbeck.objectives.logits.targets import (
    BalancedDivergence,
    CrossEntropy,
    HardTargets,
    MeanSquaredError,
    MixedTargets,
    SoftTargets,
)
from limbeck.objectives.mapping import MappedClasses, MappedTokens, SortedTargets
from limbeck.objectives.mixing import MatrixOrientation
from limbeck.objectives.pairs import PairedContrast
from limbeck.objectives.relations import (
    AngleRelations,
    DistanceRelations,
    FeatureCorrelation,
    GramInformation,
    KernelAlignment,
    SimilarityDistillation,
    TokenContrast,
    TokenGraph,
    TokenRelations,
)
from limbeck.objectives.routing import ExpertBalance
from limbeck.objectives.self_distillation import LayeredSelfDistillation
from limbeck.objectives.subsets import AtTokens

__all__ = [
    "AdaptiveKL",
    "AngleRelations",
    "AtExit",
    "AtPlaces",
    "AtTokens",
    "AttentionTransfer",
    "BalancedDivergence",
    "BinaryTargets",
    "CalibratedTargets",
    "ConditionalInformation",
    "CorrelationTargets",
    "CrossEntropy",
    "DecoupledKD",
    "DeviationAware",
    "Discriminator",
    "DistanceRelations",
    "EmbeddingDistance",
    "EnhancedTargets",
    "ExcessTargets",
    "ExpertBalance",
    "FeatureCorrelation",
    "GramInformation",
    "HardTargets",
    "Hint",
    "InterpolatedTargets",
    "JensenShannon",
    "KernelAlignment",
    "LargeVocabulary",
    "LayeredSelfDistillation",
    "Loss",
    "MappedClasses",
    "MappedTokens",
    "MarginHint",
    "MaskedHints",
    "MatrixOrientation",
    "MeanSquaredError",
    "MemoryContrast",
    "MixedTargets",
    "MultiLevelTargets",
    "MutualInformation",
    "NeuronSelectivity",
    "NormDirection",
    "NormalizedKD",
    "Objective",
    "OnSignal",
    "PairedContrast",
    "PriorAdjusted",
    "RankedTargets",
    "ReverseKL",
    "ReviewHints",
    "Scheduled",
    "ShieldedTargets",
    "SimilarityDistillation",
    "SingularHints",
    "SinkhornTargets",
    "SkewKL",
    "SoftTargets",
    "SortedTargets",
    "Standardized",
    "StandardizedTargets",
    "Sum",
    "SymmetricKL",
    "TokenContrast",
    "TokenGraph",
    "TokenRelations",
    "TopKTargets",
    "TotalVariation",
    "TransformedTargets",
    "UniversalSelfKD",
    "VariationalHint",
    "WeightedSoftTargets",
    "WhereCorrect",
    "layer_map",
    "nearest_layer",
    "over_layers",
]
