"""Transforms that leave what a model computes as it is and make it easier to quantize."""

from limbeck.quantization.equivalence.awq import AWQ, ClipWeights
from limbeck.quantization.equivalence.folds import Fold
from limbeck.quantization.equivalence.hadamard import hadamard, rotation
from limbeck.quantization.equivalence.layouts import Layout, layout
from limbeck.quantization.equivalence.reparameterize import Reparameterize, RepQuant
from limbeck.quantization.equivalence.rotate import Rotate
from limbeck.quantization.equivalence.smooth import Equalize, SmoothQuant

__all__ = [
    "AWQ",
    "ClipWeights",
    "Equalize",
    "Fold",
    "Layout",
    "RepQuant",
    "Reparameterize",
    "Rotate",
    "SmoothQuant",
    "hadamard",
    "layout",
    "rotation",
]
