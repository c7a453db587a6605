"""Codecs: signals to bytes and back; what they report is the length of the bytes."""

from limbeck.codecs.circuit_codec import CircuitCodec
from limbeck.codecs.circuits import HiddenTree
from limbeck.codecs.entropy import Huffman, code_lengths
from limbeck.codecs.vector_quantization import Quantized, VectorQuantizer, kmeans, nearest, straight_through

__all__ = [
    "CircuitCodec",
    "HiddenTree",
    "Huffman",
    "Quantized",
    "VectorQuantizer",
    "code_lengths",
    "kmeans",
    "nearest",
    "straight_through",
]
