"""Export to ONNX, checked: the file is written only when ONNX Runtime gives the outputs that torch gives.

    model --(torch exporter)--> float32 graph --(optimize)--> fused graph --(precision)--> int8 graph
          --(ONNX checker, ONNX Runtime against torch at several batch sizes, lengths and paddings)--> the file

A tolerance on outputs says that the graph is right; it cannot say that a rounded model is still good. `check_quality` does:
it compares task metrics measured in ONNX Runtime with those from before.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, LimbeckError, UsageError, did_you_mean, require
from limbeck.export.checks import rows_of, verify
from limbeck.export.runtime import first_line
from limbeck.signals import TARGETS, call, first_tensor, model_inputs

OPSET = 20
TOLERANCE = {
    "float32": 1e-4,
    "int8": 0.25,
    "int8_dynamic": 0.25,
    "weight_only": 0.25,
}  # of the largest output; see `difference`
OPTIMIZATIONS = (None, "bert")
INPUT_RANGES = ("token", "tensor")
EMBED_LIMIT = 2_000_000_000  # bytes of weights that fit into one protobuf file


@dataclass(frozen=True)
class ExportResult:
    """`difference` is the largest |ONNX Runtime - torch| over all checks, relative to the largest |torch| output."""

    path: Path
    bytes: int
    difference: float
    tolerance: float
    precision: str
    opset: int
    inputs: tuple[str, ...]
    dynamic: dict[str, dict[str, str]]
    checks: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "inputs": list(self.inputs)}


def export_onnx(
    model: nn.Module,
    task_or_example: Any,
    path: Path | str,
    *,
    precision: str = "float32",
    opset: int = OPSET,
    dynamic_batch: bool = True,
    dynamic_length: bool | None = None,
    optimize: str | None = None,
    tolerance: float | None = None,
    calibration: int = 256,
    accuracy_level: int = 4,
    input_ranges: str | None = None,
) -> ExportResult:
    """Write `model` as one ONNX file (weights beyond 2 GB in `PATH.data` beside it) and prove it equal to torch.

    task_or_example  a Task, or a batch mapping of example inputs. int8 of a float model calibrates on the task's train split.
    precision        float32; int8 (quantize and dequantize nodes: of a model that Limbeck quantized its own grids, of a float model
                     ONNX Runtime's static quantization from `calibration` training examples); int8_dynamic (weights per channel
                     ahead of time, activations while running: for transformers and other models of matrix products); weight_only (of a
                     model whose weights alone are quantized: MatMulNBits on 2, 4 or 8 bits, see `limbeck.export.nbits`)
    dynamic_length   whether axis 1 of token inputs may vary; None: where inputs are whole numbers of shape (B, L)
    accuracy_level   of weight_only: what activations become inside products, 0 and 1 float32, 4 int8 (fast). The graph is proven equal to
                     torch to 1e-4 at level 1 first; `difference` is that at the level asked for
    input_ranges     of a quantized model whose linear layers have dynamic inputs: "token", a range for each token, as torch computes it; "tensor", one
                     for all of an input, which is faster and can lose quality. None: "token" where there are such layers
    optimize         "bert": fuse attention, layer norm and GELU of transformer encoders into ONNX Runtime's own operators
    tolerance        largest allowed `ExportResult.difference`; None: TOLERANCE[precision]

    Raises UsageError for arguments that cannot be right and ExportError when the model cannot be traced, the file is not
    valid, or outputs differ; then nothing is written at `path`.
    """
    if precision not in TOLERANCE:
        raise UsageError(f"unknown precision {precision!r}. {did_you_mean(precision, TOLERANCE)}")
    if optimize not in OPTIMIZATIONS:
        raise UsageError(f"unknown optimization {optimize!r}. Known: 'bert', None")
    limit = TOLERANCE[precision] if tolerance is None else tolerance
    path = Path(path)
    task = task_or_example if hasattr(task_or_example, "batches") else None
    example = _example(task_or_example if task is None else task.example(2))
    quantized = is_quantized(model)
    if precision == "weight_only":
        _check_weight_only(accuracy_level, optimize)
    _check_input_ranges(input_ranges, model, precision)
    if quantized and precision == "int8_dynamic":
        raise UsageError("the model is quantized already; export it with precision='int8', which keeps its own grids")
    if precision == "int8" and not quantized and task is None:
        raise UsageError("int8 of a float model calibrates on training data: give a Task, not example inputs")
    model = _prepared(model, keep=quantized or precision == "weight_only")
    example = _inputs(model, example)
    dynamic = _dynamic(example, dynamic_batch, dynamic_length)
    with _folder_beside(path) as folder:
        file = folder / path.name
        if precision == "int8" and quantized:
            from limbeck.export import encoder, qdq

            if encoder.fits(model) and set(example) == {"input_ids", "attention_mask"}:
                encoder.write_encoder(model, file)
            else:
                qdq.export_qdq(model, example, file, dynamic=dynamic, by_token=input_ranges != "tensor")
        elif precision == "weight_only":
            from limbeck.export import nbits

            model = in_float32(model)
            nbits.export_nbits(model, example, file, dynamic=dynamic)
            verify(model, file, example, dynamic, TOLERANCE["float32"])
            nbits.set_accuracy_level(file, accuracy_level)
        else:
            write_float(model, example, file, opset=opset, dynamic=dynamic, for_fusion=optimize is not None)
            from limbeck.export import precision as precisions

            if optimize == "bert":
                precisions.fuse_bert(model, file)
            if precision == "int8_dynamic":
                precisions.quantize_dynamic(file)
            elif precision == "int8":
                precisions.quantize_static(file, task, tuple(example), calibration)
        difference, checks = verify(model, file, example, dynamic, limit)
        size = sum(one.stat().st_size for one in folder.iterdir())
        for one in sorted(folder.iterdir(), key=lambda p: p == file):  # the graph last: it names the others
            os.replace(one, path.parent / one.name)
    return ExportResult(path, size, difference, limit, precision, _opset(path), tuple(example), dynamic, checks)


def _check_weight_only(accuracy_level: int, optimize: str | None) -> None:
    from limbeck.export.nbits import LEVELS

    if accuracy_level not in LEVELS or isinstance(accuracy_level, bool):
        raise UsageError(f"accuracy_level={accuracy_level!r}: allowed are 0 to 4, where 1 is float32 and 4 is int8")
    if optimize is not None:
        raise UsageError(f"optimize={optimize!r} is for float graphs; drop it with precision='weight_only'")


def _check_input_ranges(ranges: str | None, model: nn.Module, precision: str) -> None:
    if ranges is None:
        return
    if ranges not in INPUT_RANGES:
        raise UsageError(f"input_ranges={ranges!r}. {did_you_mean(str(ranges), INPUT_RANGES)}")
    from limbeck.export.integers import quantized_layers
    from limbeck.quantization.specification import DynamicRange

    inputs = [module.specification.input for module in quantized_layers(model).values()]
    if precision != "int8" or not any(isinstance(one, DynamicRange) for one in inputs):
        raise UsageError(
            f"input_ranges={ranges!r} is for a model that is quantized with activations: dynamic, exported with precision='int8'"
        )


def in_float32(model: nn.Module) -> nn.Module:
    """The model with weight-only products in float32: what an exported graph is compared with. Changed in place."""
    for module in model.modules():
        if getattr(module, "limbeck_quantized", False):
            module.specification = replace(module.specification, compute="float32")
    return model.float()


def is_quantized(model: nn.Module) -> bool:
    """Whether a Limbeck `quantize` plan was applied to the model."""
    from limbeck.build import lineage

    past = lineage(model)
    marked = any(getattr(module, "limbeck_quantized", False) for module in model.modules())
    return marked or (past is not None and any(plan.kind == "quantize" for plan in past.plans))


def _example(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping) or not value:
        raise UsageError(f"an export needs a Task or a batch of example inputs, got {type(value).__name__}")
    batch = {name: tensor for name, tensor in value.items() if name not in TARGETS and isinstance(tensor, Tensor)}
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in batch.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise UsageError(f"example inputs must share their first axis, the batch; got sizes {sorted(sizes)}")
    return {name: rows_of(tensor.detach().cpu(), max(2, tensor.shape[0])) for name, tensor in batch.items()}


def _inputs(model: nn.Module, example: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of the example that reach the model, as `limbeck.signals.call` decides."""
    named = model_inputs(model, example)
    if named or "input_ids" in example:
        return named or example
    return dict([next(iter(example.items()))])


def _prepared(model: nn.Module, keep: bool) -> nn.Module:
    """The model on the CPU in evaluation mode; a copy, so that the caller's is left alone, in float32 unless `keep`."""
    model = copy.deepcopy(model).cpu().eval()
    return model if keep else model.float()


def _dynamic(example: dict[str, Tensor], batch: bool, length: bool | None) -> dict[str, dict[str, str]]:
    """{input: {axis: name}} of the axes that may vary; axes as text, so that it is JSON."""
    tokens = {name for name, t in example.items() if t.dim() == 2 and not t.is_floating_point()}
    if length and not tokens:
        raise UsageError(f"dynamic_length needs token inputs of shape (B, L); there are only {sorted(example)}")
    vary = tokens if length or length is None else set()
    axes = {name: ({"0": "batch"} if batch else {}) | ({"1": "length"} if name in vary else {}) for name in example}
    return {name: found for name, found in axes.items() if found}


class _Positional(nn.Module):
    """The model as a function of its inputs by position that returns its primary tensor, as exporters want it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return first_tensor(call(self.model, dict(zip(self.names, inputs))))


def write_float(
    model: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    opset: int = OPSET,
    dynamic: Mapping[str, Mapping[str, str]] | None = None,
    for_fusion: bool = False,
) -> None:
    """Trace the model into an ONNX file: inputs named as the example's keys, one output `logits`; not compared with torch.

    `for_fusion` uses torch's older exporter, whose attention subgraph is the one that ONNX Runtime's fusions know.
    """
    require("onnxscript", "onnx")
    names = tuple(example)
    axes = {name: {int(a): text for a, text in (dynamic or {}).get(name, {}).items()} for name in names}
    shared = {"input_names": list(names), "output_names": ["logits"], "verbose": False}
    large = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers()) >= EMBED_LIMIT
    wrapped = _Positional(model, names).eval()
    try:
        with _eager_attention(model), _quiet(), torch.no_grad():
            if for_fusion:
                torch.onnx.export(
                    wrapped, tuple(example.values()), str(path), dynamo=False, opset_version=min(opset, 17),
                    dynamic_axes={**axes, "logits": {0: "batch"} if any(0 in a for a in axes.values()) else {}}, **shared
                )  # fmt: skip
            else:
                program = torch.onnx.export(
                    wrapped, tuple(example.values()), dynamo=True, opset_version=opset,
                    dynamic_shapes=(tuple(axes[name] or None for name in names),), **shared
                )  # fmt: skip
                program.save(str(path), external_data=large)
    except LimbeckError:
        raise
    except Exception as error:
        raise ExportError(
            f"torch cannot trace {type(model).__name__} into an ONNX graph: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not large:
        _strip(path)


def _strip(path: Path) -> None:
    """Take out what the exporter notes about the source code, and shapes that later passes would have to keep right."""
    import onnx

    proto = onnx.load(str(path))
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    onnx.save(proto, str(path))


@contextlib.contextmanager
def _eager_attention(model: nn.Module) -> Iterator[None]:
    """transformers' plain attention: its graph is smaller and faster than what the fused kernel decomposes into."""
    configs = {
        id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "_attn_implementation")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            if config._attn_implementation == "sdpa":
                config._attn_implementation = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No remarks of the exporter about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent))
        yield folder
    except OSError as error:
        raise LimbeckError(f"cannot write {path}: {error.strerror or error}. Nothing was left behind there.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _opset(path: Path) -> int:
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    return next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
