"""Codecs: signals to few bits and back."""

from limbeck.codecs.vector_quantization import Quantized, VectorQuantizer, kmeans, nearest, straight_through

__all__ = ["Quantized", "VectorQuantizer", "kmeans", "nearest", "straight_through"]
