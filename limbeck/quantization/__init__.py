"""Quantization: number grids, calibration, post-training quantization and training on the grid."""

from limbeck.quantization.activations import QuantizeSoftmax
from limbeck.quantization.adaptive_precision import (
    AdaptivePrecision,
    mean_words,
    on_fixed_point,
    precisions,
    relative_cost,
    store_fixed_point,
)
from limbeck.quantization.adaptive_rounding import AdaRound, BlockReconstruction
from limbeck.quantization.affine_grid import AffineGrid
from limbeck.quantization.binaries import BinarySum
from limbeck.quantization.bit_switching import prepare_switching, store_switching, switch
from limbeck.quantization.code_tuning import TuneCodes, finish_codes, tune_codes
from limbeck.quantization.codebooks import CodebookGrid
from limbeck.quantization.contract import Grid
from limbeck.quantization.decoupled import DecoupleQ
from limbeck.quantization.embeddings import QuantizeEmbeddings
from limbeck.quantization.equivalence import AWQ, ClipWeights, Equalize, Reparameterize, RepQuant, Rotate, SmoothQuant
from limbeck.quantization.expert_bits import ExpertBits
from limbeck.quantization.fixed_point import FixedPointGrid
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
from limbeck.quantization.from_folder import quantize_folder
from limbeck.quantization.gptq import GPTQ
from limbeck.quantization.grids import IntegerGrid, Packed, PerChannel, PerGroup, PerRows, PerTensor, Quantizer
from limbeck.quantization.half_quadratic import HalfQuadratic
from limbeck.quantization.joint_codebooks import JointCodebooks
from limbeck.quantization.kernels import plain_kernels
from limbeck.quantization.lattices import LatticeGrid
from limbeck.quantization.levels import LevelGrid
from limbeck.quantization.mixed_precision import MixedPrecision
from limbeck.quantization.modules import QuantizedConv2d, QuantizedLinear, kernel_table
from limbeck.quantization.named_grids import named
from limbeck.quantization.neuron_order import OrderNeurons
from limbeck.quantization.power_grid import SearchedPowerGrid, shared_exponent
from limbeck.quantization.power_search import PowerSearch
from limbeck.quantization.pyramids import PyramidGrid
from limbeck.quantization.quantization_aware import finish_qat, normalize_inputs, prepare_qat
from limbeck.quantization.quantize import Quantize
from limbeck.quantization.quantized_embedding import QuantizedEmbedding
from limbeck.quantization.range_levels import RangeLevelGrid
from limbeck.quantization.scored_bits import ScoredBits, outlier_score
from limbeck.quantization.shards import Shards, empty, round_shards
from limbeck.quantization.storage import packed_from_bytes, packed_to_bytes
from limbeck.quantization.switched_training import SwitchBits
from limbeck.quantization.two_of_four import TwoOfFourGrid
from limbeck.quantization.vector_feedback import VectorFeedback

__all__ = [
    "AWQ",
    "GPTQ",
    "AdaRound",
    "AdaptivePrecision",
    "AffineGrid",
    "BinaryGrid",
    "BinarySum",
    "BlockReconstruction",
    "ClipWeights",
    "CodebookGrid",
    "DecoupleQ",
    "Equalize",
    "ExpertBits",
    "FixedPointGrid",
    "FoldBatchNorm",
    "FourthRootGrid",
    "Grid",
    "HalfQuadratic",
    "IntegerGrid",
    "JointCodebooks",
    "LatticeGrid",
    "LevelGrid",
    "LevelSet",
    "LogGrid",
    "MinifloatGrid",
    "MixedPrecision",
    "NormalFloatGrid",
    "OrderNeurons",
    "Packed",
    "PerChannel",
    "PerGroup",
    "PerRows",
    "PerTensor",
    "PowerGrid",
    "PowerSearch",
    "PyramidGrid",
    "Quantize",
    "QuantizeEmbeddings",
    "QuantizeSoftmax",
    "QuantizedConv2d",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "Quantizer",
    "RangeLevelGrid",
    "RepQuant",
    "Reparameterize",
    "Rotate",
    "ScoredBits",
    "SearchedPowerGrid",
    "Shards",
    "SmoothQuant",
    "SwitchBits",
    "TernaryGrid",
    "TuneCodes",
    "TwoOfFourGrid",
    "VectorFeedback",
    "empty",
    "finish_codes",
    "finish_qat",
    "kernel_table",
    "mean_words",
    "named",
    "normalize_inputs",
    "on_fixed_point",
    "outlier_score",
    "packed_from_bytes",
    "packed_to_bytes",
    "plain_kernels",
    "precisions",
    "prepare_qat",
    "prepare_switching",
    "quantize_folder",
    "relative_cost",
    "round_shards",
    "shared_exponent",
    "store_fixed_point",
    "store_switching",
    "switch",
    "tune_codes",
]
