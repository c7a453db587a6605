"""Files for other runtimes: ONNX (float32, int8) and the transformers and sentence-transformers layouts."""

from limbeck.export.checks import check_quality
from limbeck.export.onnx import ExportResult, export_onnx
from limbeck.export.runtime import OnnxModel, session_options
from limbeck.export.sentence_transformers import export_sentence_transformers
from limbeck.export.transformers_folder import export_transformers

__all__ = [
    "ExportResult",
    "OnnxModel",
    "check_quality",
    "export_onnx",
    "export_sentence_transformers",
    "export_transformers",
    "session_options",
]
