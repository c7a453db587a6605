"""Objectives on features: what hidden layers hold, example by example."""

from limbeck.objectives.features.activations import AttentionTransfer, NeuronSelectivity
from limbeck.objectives.features.directions import NormDirection
from limbeck.objectives.features.hints import EmbeddingDistance, Hint
from limbeck.objectives.features.margins import MarginHint
from limbeck.objectives.features.masks import MaskedHints
from limbeck.objectives.features.review import ReviewHints
from limbeck.objectives.features.singular import SingularHints
from limbeck.objectives.features.variational import VariationalHint

__all__ = [
    "AttentionTransfer",
    "EmbeddingDistance",
    "Hint",
    "MarginHint",
    "MaskedHints",
    "NeuronSelectivity",
    "NormDirection",
    "ReviewHints",
    "SingularHints",
    "VariationalHint",
]
