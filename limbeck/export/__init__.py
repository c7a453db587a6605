"""Files for other runtimes: ONNX (float32, int8, weight-only), GGUF, and folders for transformers, sentence-transformers,
compressed-tensors and GPTQ's readers."""

from limbeck.export.checks import check_quality
from limbeck.export.compressed_tensors import export_compressed_tensors
from limbeck.export.gguf import export_gguf
from limbeck.export.gptq import export_gptq
from limbeck.export.onnx import ExportResult, export_onnx
from limbeck.export.runtime import OnnxModel, session_options
from limbeck.export.sentence_transformers import export_sentence_transformers
from limbeck.export.transformers_folder import export_transformers

__all__ = [
    "ExportResult",
    "OnnxModel",
    "check_quality",
    "export_compressed_tensors",
    "export_gguf",
    "export_gptq",
    "export_onnx",
    "export_sentence_transformers",
    "export_transformers",
    "session_options",
]
