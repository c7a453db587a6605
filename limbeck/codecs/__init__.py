"""Codecs: signals to bytes and back."""

from limbeck.codecs.vector_quantization import Quantized, VectorQuantizer, kmeans, nearest, squared_distances

__all__ = ["Quantized", "VectorQuantizer", "kmeans", "nearest", "squared_distances"]
