"""Codecs: signals to bytes and back; what they report is the length of the bytes."""

from limbeck.codecs.entropy import Huffman, code_lengths
from limbeck.codecs.vector_quantization import Quantized, VectorQuantizer, kmeans, nearest, straight_through

__all__ = ["Huffman", "Quantized", "VectorQuantizer", "code_lengths", "kmeans", "nearest", "straight_through"]
