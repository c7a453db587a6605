"""ONNX graph to ONNX graph: operator fusion for transformer encoders, static and dynamic int8. Files are changed in place."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import ExportError, UsageError, require

DYNAMIC_OPERATORS = ("MatMul", "Gemm", "Gather", "Attention", "EmbedLayerNormalization", "LSTM")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's tools warn through the root logger; nothing they say there is an error."""
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _heads(model: nn.Module) -> tuple[int, int]:
    """Attention heads and width of the (one) transformer encoder inside a model."""
    for module in model.modules():
        config = getattr(module, "config", None)
        heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
        if isinstance(heads, int) and isinstance(width, int):
            return heads, width
    raise UsageError(
        f"optimize='bert' needs a transformers encoder (with config.num_attention_heads and config.hidden_size); "
        f"{type(model).__name__} holds none"
    )


def fuse_bert(model: nn.Module, file: Path) -> None:
    """Fuse embedding, attention, skip + layer norm and bias + GELU into ONNX Runtime's own operators.

    Raises ExportError when nothing could be fused: then the option brings nothing and should not be believed to.
    """
    optimizer = require("onnxruntime.transformers.optimizer", "onnx")
    heads, width = _heads(model)
    with _quiet():
        optimized = optimizer.optimize_model(
            str(file), model_type="bert", num_heads=heads, hidden_size=width, opt_level=0
        )
        fused = optimized.get_fused_operator_statistics()
        if not any(fused.get(name, 0) for name in ("Attention", "MultiHeadAttention", "SkipLayerNormalization")):
            raise ExportError(f"optimize='bert': no attention or layer norm of {type(model).__name__} could be fused")
        optimized.save_model_to_file(str(file))


def _preprocess(file: Path) -> None:
    """Shape inference and graph clean-up that ONNX Runtime's quantizer wants; symbolic inference only where it can."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    proto = onnx.load(str(file))
    fused = any(node.domain == "com.microsoft" for node in proto.graph.node)
    if not fused:
        quant_pre_process(str(file), str(file), skip_symbolic_shape=True)


def quantize_dynamic(file: Path) -> None:
    """int8 weights per channel, activations per tensor while running, for matrix products (and fused attention, embeddings).

    Convolutions stay float: ONNX Runtime has no fast kernel for them in this form; `int8` is the precision for those.
    """
    onnx, tools = require("onnx", "onnx"), require("onnxruntime.quantization", "onnx")
    try:
        with _quiet():
            _preprocess(file)
            tools.quantize_dynamic(
                str(file), str(file), op_types_to_quantize=list(DYNAMIC_OPERATORS), per_channel=True,
                weight_type=tools.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
            )  # fmt: skip
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot quantize the graph: {type(error).__name__}: {error}") from error


def quantize_static(file: Path, task: Any, inputs: tuple[str, ...], examples: int, batch_size: int = 32) -> None:
    """Quantize and dequantize nodes: int8 weights per channel, uint8 activations with ranges from the train split."""
    tools = require("onnxruntime.quantization", "onnx")

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = task.batches("train", batch_size, limit=examples)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch[name].numpy() for name in inputs}

    try:
        with _quiet():
            _preprocess(file)
            tools.quantize_static(
                str(file), str(file), Reader(), quant_format=tools.QuantFormat.QDQ, per_channel=True,
                activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
                calibrate_method=tools.CalibrationMethod.MinMax,
            )  # fmt: skip
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot quantize the graph: {type(error).__name__}: {error}") from error
