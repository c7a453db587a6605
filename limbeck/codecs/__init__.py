"""Codecs: signals to bytes and back; what they report is the length of the bytes."""

from limbeck.codecs.circuit_codec import CircuitCodec
from limbeck.codecs.circuits import HiddenTree
from limbeck.codecs.entropy import Huffman, code_lengths
from limbeck.codecs.index_codec import Autoencode, IndexCodec, with_fewer_codes
from limbeck.codecs.index_prior import IndexPrior, PredictLost, fill_nearest, fill_random
from limbeck.codecs.vector_quantization import Quantized, VectorQuantizer, kmeans, nearest, straight_through

__all__ = [
    "Autoencode",
    "CircuitCodec",
    "HiddenTree",
    "Huffman",
    "IndexCodec",
    "IndexPrior",
    "PredictLost",
    "Quantized",
    "VectorQuantizer",
    "code_lengths",
    "fill_nearest",
    "fill_random",
    "kmeans",
    "nearest",
    "straight_through",
    "with_fewer_codes",
]
