"""Conversion: replace blocks of a trained model by blocks of another kind, and train them where they stand."""

from limbeck.conversion.blockwise import BlockwiseDistil
from limbeck.conversion.classifier import AlignClassifier, GrowClassifier
from limbeck.conversion.experts import SplitExperts
from limbeck.conversion.replace import Replace

__all__ = [
    "AlignClassifier",
    "BlockwiseDistil",
    "GrowClassifier",
    "Replace",
    "SplitExperts",
]
