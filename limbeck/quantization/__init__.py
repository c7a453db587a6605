"""Quantization: number grids, calibration, post-training quantization and training on the grid."""

from limbeck.quantization.binaries import BinarySum
from limbeck.quantization.bucket_training import on_buckets, store, stored_bytes
from limbeck.quantization.buckets import Bucketed, BucketQuantizer
from limbeck.quantization.codebooks import CodebookGrid
from limbeck.quantization.contract import Grid
from limbeck.quantization.folding import FoldBatchNorm
from limbeck.quantization.formats import (
    BinaryGrid,
    LevelSet,
    LogGrid,
    MinifloatGrid,
    NormalFloatGrid,
    PowerGrid,
    TernaryGrid,
)
from limbeck.quantization.fourth_roots import FourthRootGrid
from limbeck.quantization.grids import IntegerGrid, Packed, PerChannel, PerGroup, PerTensor, Quantizer
from limbeck.quantization.kernels import plain_kernels
from limbeck.quantization.lattices import LatticeGrid
from limbeck.quantization.levels import LevelGrid
from limbeck.quantization.modules import QuantizedConv2d, QuantizedLinear, kernel_table
from limbeck.quantization.named_grids import named
from limbeck.quantization.quantization_aware import finish_qat, normalize_inputs, prepare_qat
from limbeck.quantization.quantize import Quantize
from limbeck.quantization.storage import packed_from_bytes, packed_to_bytes

__all__ = [
    "BinaryGrid",
    "BinarySum",
    "BucketQuantizer",
    "Bucketed",
    "CodebookGrid",
    "FoldBatchNorm",
    "FourthRootGrid",
    "Grid",
    "IntegerGrid",
    "LatticeGrid",
    "LevelGrid",
    "LevelSet",
    "LogGrid",
    "MinifloatGrid",
    "NormalFloatGrid",
    "Packed",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PowerGrid",
    "Quantize",
    "QuantizedConv2d",
    "QuantizedLinear",
    "Quantizer",
    "TernaryGrid",
    "finish_qat",
    "kernel_table",
    "named",
    "normalize_inputs",
    "on_buckets",
    "packed_from_bytes",
    "packed_to_bytes",
    "plain_kernels",
    "prepare_qat",
    "store",
    "stored_bytes",
]
