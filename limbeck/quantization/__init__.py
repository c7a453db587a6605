"""Quantization: number grids, calibration, post-training quantization and training on the grid."""

from limbeck.quantization.activations import QuantizeSoftmax
from limbeck.quantization.bucket_training import on_buckets, store, stored_bytes
from limbeck.quantization.buckets import Bucketed, BucketQuantizer
from limbeck.quantization.equivalence import AWQ, ClipWeights, Equalize, Reparameterize, RepQuant, Rotate, SmoothQuant
from limbeck.quantization.folding import FoldBatchNorm
from limbeck.quantization.gptq import GPTQ
from limbeck.quantization.grids import IntegerGrid, Packed, PerChannel, PerGroup, PerTensor, Quantizer
from limbeck.quantization.kernels import plain_kernels
from limbeck.quantization.mixed_precision import MixedPrecision
from limbeck.quantization.modules import QuantizedConv2d, QuantizedLinear, kernel_table
from limbeck.quantization.quantization_aware import finish_qat, prepare_qat
from limbeck.quantization.quantize import Quantize

__all__ = [
    "AWQ",
    "GPTQ",
    "BucketQuantizer",
    "Bucketed",
    "ClipWeights",
    "Equalize",
    "FoldBatchNorm",
    "IntegerGrid",
    "MixedPrecision",
    "Packed",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Quantize",
    "QuantizeSoftmax",
    "QuantizedConv2d",
    "QuantizedLinear",
    "Quantizer",
    "RepQuant",
    "Reparameterize",
    "Rotate",
    "SmoothQuant",
    "finish_qat",
    "kernel_table",
    "on_buckets",
    "plain_kernels",
    "prepare_qat",
    "store",
    "stored_bytes",
]
