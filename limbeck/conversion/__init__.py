"""Conversion: parts of a model replaced by others."""

from limbeck.conversion.classifier import AlignClassifier, GrowClassifier

__all__ = ["AlignClassifier", "GrowClassifier"]
