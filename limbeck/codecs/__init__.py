"""Codecs: signals to few bits and back."""

from limbeck.codecs.vector_quantization import Quantized, VectorQuantizer, kmeans, nearest, straight_through

__all__ = ["Quantized", "VectorQuantizer", "kmeans", "nearest", "straight_through"]
"""Codecs: signals to bytes and back; what they report is the length of the bytes."""

from limbeck.codecs.entropy import Huffman, code_lengths

__all__ = ["Huffman", "code_lengths"]
