"""Objectives on relations: how examples, or the tokens of an example, lie to each other, whatever the widths."""

from limbeck.objectives.relations.alignment import FeatureCorrelation, GramInformation, KernelAlignment
from limbeck.objectives.relations.geometry import AngleRelations, DistanceRelations
from limbeck.objectives.relations.similarities import SimilarityDistillation
from limbeck.objectives.relations.token_graphs import TokenContrast, TokenGraph
from limbeck.objectives.relations.tokens import TokenRelations

__all__ = [
    "AngleRelations",
    "DistanceRelations",
    "FeatureCorrelation",
    "GramInformation",
    "KernelAlignment",
    "SimilarityDistillation",
    "TokenContrast",
    "TokenGraph",
    "TokenRelations",
]
