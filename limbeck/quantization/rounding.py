"""Rounding: how weights are put on their grid, given calibration data or none; the contract of GPTQ, AdaRound and the others.

    Quantize(bits=4, weights=64, activations=None, rounding="gptq").plan(model, task)

A Rounding is a frozen dataclass that turns the weights of one segment (see `streaming`) into packed ones. Most work layer by layer,
from the layer's Hessian alone: those derive from `LayerRounding` and write one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import tensors
from limbeck.errors import ArtifactError, UsageError, did_you_mean
from limbeck.memory import give_back
from limbeck.quantization import columns
from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import PerChannel, PerGroup, PerTensor
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.hessian import LayerHessian, matrix
from limbeck.quantization.streaming import Segment, segments

HESSIAN_TYPES = {"float32": torch.float32, "float64": torch.float64}
LARGE = 1 << 19  # bytes of a Hessian from which on a layer takes long, and returning memory before it little of that


@dataclass(frozen=True)
class Rounding:
    """Base of the ways of rounding. `reads_data`: whether it looks at calibration data; `targets`: whether it compares blocks with
    the float model's."""

    reads_data = True
    targets = False

    def solve(self, segment: Segment, quantizers: Mapping[str, Quantizer]) -> dict[str, Packed]:
        """The packed weight matrix (out, n) of every module of a segment; ends with `segment.write` of all of them."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerRounding(Rounding):
    """Layer by layer: within a segment, modules that read the same tensor are solved together, and the next ones see inputs that
    the rounded modules before them give.

    hessian_type: "float32" or "float64", of the sums of `LayerHessian` and of what is computed from them.
    """

    hessian_type: str = "float32"

    def __post_init__(self) -> None:
        if self.hessian_type not in HESSIAN_TYPES:
            raise UsageError(f"hessian_type={self.hessian_type!r}: allowed are 'float32' and 'float64'")

    def layer(self, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        """Packed weight of one layer: weight (out, n) float32, hessian (groups, n, n) of `LayerHessian`."""
        raise NotImplementedError

    def solve(self, segment: Segment, quantizers: Mapping[str, Quantizer]) -> dict[str, Packed]:
        found: dict[str, Packed] = {}
        for stage in segment.stages():
            layers = {path: segment.module(path) for path in stage}
            for paths, hessian in self.hessians(segment, layers):
                weights = [matrix(layers[path]) for path in paths]
                if hessian is None:
                    found |= {path: quantizers[path].encode(weight) for path, weight in zip(paths, weights)}
                    continue
                together = (
                    len({quantizers[path] for path in paths}) == 1
                    and isinstance(quantizers[paths[0]].granularity, (PerChannel, PerGroup))
                    and "codebook" not in quantizers[paths[0]].layout((2, 64))
                )
                value = hessian.take()
                if value.nbytes >= LARGE:
                    give_back()  # what the pass left behind, before the largest tensors of the walk are made
                if together:  # rows do not know of each other
                    counts = [len(weight) for weight in weights]
                    whole = weights.pop() if len(weights) == 1 else torch.cat(weights)
                    weights.clear()
                    found |= zip(paths, rows_of(self.layer(whole, value, quantizers[paths[0]]), counts))
                    del whole
                else:
                    found |= {path: self.layer(w, value, quantizers[path]) for path, w in zip(paths, weights)}
                del weights, value
            for path in stage:
                segment.write(path, quantizers[path].decode(found[path]))
        return found

    def hessians(
        self, segment: Segment, layers: Mapping[str, nn.Module], share: bool = True
    ) -> list[tuple[list[str], LayerHessian | None]]:
        """The Hessian of every layer, once for those that read the very same tensors; None of those that no batch reached."""
        kind = HESSIAN_TYPES[self.hessian_type]
        found: dict[str, LayerHessian] = {}
        twins: dict[str, str] = {}  # layer -> the one that reads the same
        last: list[tuple[Tensor, str]] = []
        strayed: set[str] = set()

        def see(path: str, x: Tensor, mask: Tensor | None) -> None:
            same = last[0][1] if share and last and last[0][0] is x else None
            if same is not None and path not in found and twins.get(path, same) == same:
                twins[path] = same
                return
            if path in twins:
                strayed.add(path)
                return
            last[:] = [] if isinstance(layers[path], nn.Conv2d) else [(x, path)]
            found.setdefault(path, LayerHessian(layers[path], kind)).update(x, mask)

        segment.visit(layers, see)
        if strayed:  # at one call they read the same, at another they did not
            return self.hessians(segment, layers, share=False)
        groups = [
            ([path, *(p for p, owner in twins.items() if owner == path)], hessian) for path, hessian in found.items()
        ]
        unreached = [path for path in layers if path not in found and path not in twins]
        return groups + [(unreached, None)] * bool(unreached)


def rows_of(packed: Packed, counts: Sequence[int]) -> list[Packed]:
    """A packed matrix, whose scales are per row or per group, cut into runs of rows."""
    parts = [
        t.split(list(counts)) if t is not None else [None] * len(counts)
        for t in (packed.codes, packed.scale, packed.zero_point)
    ]
    return [Packed(*cut, (count, *packed.shape[1:])) for count, cut in zip(counts, zip(*parts))]


def as_rounding(rounding: str | Rounding) -> Rounding | None:
    """The method a name stands for, with its defaults; None for "nearest". Raises UsageError for an unknown one."""
    if isinstance(rounding, Rounding):
        return rounding
    from limbeck.quantization.adaptive_rounding import AdaRound, BlockReconstruction
    from limbeck.quantization.decoupled import DecoupleQ
    from limbeck.quantization.gptq import GPTQ
    from limbeck.quantization.half_quadratic import HalfQuadratic
    from limbeck.quantization.joint_codebooks import JointCodebooks
    from limbeck.quantization.power_search import PowerSearch
    from limbeck.quantization.vector_feedback import VectorFeedback

    known = {
        "nearest": None,
        "gptq": GPTQ,
        "adaround": AdaRound,
        "reconstruction": BlockReconstruction,
        "hqq": HalfQuadratic,
        "decoupleq": DecoupleQ,
        "nupes": PowerSearch,
        "jlcm": JointCodebooks,
        "vector_feedback": VectorFeedback,
    }
    if rounding not in known:
        raise UsageError(
            f"rounding={rounding!r}: {did_you_mean(str(rounding), known)} Or give an object such as GPTQ(damping=0.05)"
        )
    made = known[rounding]
    return None if made is None else made()


def round_weights(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    quantizers: Mapping[str, Quantizer],
    rounding: Rounding,
) -> tuple[dict[str, Packed], dict[str, Tensor]]:
    """The packed weight of every module named in `quantizers`, and new values of other parameters by name, where the method tunes
    those; modules that no batch reached are rounded to the nearest.

    batches: calibration data, mappings that the model takes; not read by methods that need none. The model is left as it was.
    """
    found: dict[str, Packed] = {}
    changed: dict[str, Tensor] = {}
    if rounding.reads_data:
        for segment in segments(model, batches, list(quantizers), rounding.targets):
            found |= rounding.solve(segment, quantizers)
            changed |= segment.changed
    else:
        found = {path: rounding.layer(matrix(model.get_submodule(path)), None, q) for path, q in quantizers.items()}
    found |= {path: q.encode(matrix(model.get_submodule(path))) for path, q in quantizers.items() if path not in found}
    return {path: found[path] for path in quantizers}, changed


def scale_rows(scale: Tensor, rows: int, count: int, granularity: Any) -> tuple[Tensor, Tensor]:
    """Scales or zero points of a weight (rows, count), as `parameter_shape` has them, as a table (groups, rows), and the group
    of every column, int64 (count,)."""
    if isinstance(granularity, PerGroup):
        return scale.t().contiguous(), torch.arange(count, device=scale.device) // granularity.size
    nowhere = torch.zeros(count, dtype=torch.int64, device=scale.device)
    if isinstance(granularity, PerTensor):
        return scale.reshape(1, 1).expand(1, rows).contiguous(), nowhere
    if granularity != PerChannel(0):
        raise UsageError(f"{granularity}: weights are rounded with scales per tensor, per output channel or per group")
    return scale.reshape(1, rows), nowhere


def by_group(weight: Tensor, hessian: Tensor, quantizer: Quantizer, solve: Callable[..., Any]) -> Packed:
    """Solve each group of a convolution with its own Hessian, and pack the whole.

    weight (out, n); hessian (groups, n, n); solve(rows of the weight, their Hessian (n, n), quantizer, parameters) -> codes, scale,
    zero point. parameters: None, or the scale and zero point of the whole tensor, where the rows of all groups share one.
    """
    whole = columns.parameters(weight, quantizer) if quantizer.granularity == PerTensor() and len(hessian) > 1 else None
    parts = [solve(rows, h, quantizer, whole) for rows, h in zip(weight.chunk(len(hessian)), hessian)]
    codes, scale, zero = parts[0] if len(parts) == 1 else (torch.cat(e) if e[0].dim() else e[0] for e in zip(*parts))
    return columns.packed(quantizer, codes, scale, zero)


def to_text(packed: Packed) -> dict[str, str]:
    """The stored tensors of a packed weight as text, for a plan's data."""
    return {name: tensors.to_text(value, value.dtype) for name, value in packed.tensors.items()}


def from_text(texts: Any, shape: tuple[int, int], quantizer: Quantizer, path: str) -> Packed:
    """The reverse of `to_text` for a weight matrix of this shape. Raises ArtifactError for text that does not fit."""
    layout = quantizer.layout(shape)
    if not isinstance(texts, Mapping) or set(texts) != set(layout):
        raise ArtifactError(f"the rounded weight of {path!r} in the plan is damaged: it needs {sorted(layout)}")
    made = {
        name: tensors.from_text(texts[name], form, f"the {name} of {path!r} in the plan", kind)
        for name, (form, kind) in layout.items()
    }
    packed = Packed(made["codes"], made.get("scale"), made.get("zero_point"), tuple(shape), made.get("codebook"))
    try:
        quantizer.check(packed)
    except ArtifactError as error:
        raise ArtifactError(f"the rounded weight of {path!r} in the plan is damaged: {error}") from error
    return packed
