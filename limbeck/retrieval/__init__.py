"""Retrieval: indexes of dense vectors in a few bytes per document."""

from limbeck.retrieval.distillation import DistilIndex
from limbeck.retrieval.index import QuantizedIndex
from limbeck.retrieval.product_quantization import fit_codebooks, fit_rotation, straight_through

__all__ = ["DistilIndex", "QuantizedIndex", "fit_codebooks", "fit_rotation", "straight_through"]
