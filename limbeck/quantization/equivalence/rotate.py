"""Rotate: turn the residual stream and the heads, so that no channel holds the outliers; what the model computes stays.

    what writes to the stream    x W^T  ->  x W^T Q          embeddings, output projections, their biases
    what reads it                W      ->  W diag(g) Q      g: the norm's weight, which becomes 1; its bias moves along

An RMSNorm without weight commutes with every rotation. A LayerNorm also subtracts the mean over channels; it commutes with the
rotations that keep the mean, Q 1 = 1, and those are taken for such models. So every norm stays the module it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.pruning.configuration import configurations, set_configuration
from limbeck.quantization.equivalence.folds import Fold, columns, rows
from limbeck.quantization.equivalence.hadamard import ROTATIONS, rotation
from limbeck.quantization.equivalence.layouts import Stream, layout

KIND = "rotate"


@dataclass(frozen=True)
class Rotate:
    """Rotate the residual stream and, head by head, what attention mixes.

    kind        "hadamard" with random signs (random where there is no such matrix of that size), or "random"
    residual    the residual stream; needs a whole model that a table knows, else it is left alone and listed
    heads       values and output projections, one rotation per key/value head
    seed        of the rotations

    A head that shares the embedding's weight gets a weight of its own, because only one side can take in the last norm's weight: the
    model grows by that matrix. Hidden states, where someone reads them, are rotated ones.
    Sources: Ashkboos et al., "QuaRot", NeurIPS 2024, section 4 stages 1a and 1b without the rotations at run time; Ashkboos et al.,
    "SliceGPT", ICLR 2024, section 3.1, turns LayerNorm into RMSNorm by centring what writes to the stream, where here the rotation
    keeps the mean and the norms stay. Raises UsageError where a norm's weight is 0 and its bias has nowhere to go.
    """

    kind: str = "hadamard"
    residual: bool = True
    heads: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ROTATIONS:
            raise UsageError(f"Rotate: kind={self.kind!r}: allowed are {', '.join(map(repr, ROTATIONS))}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"Rotate: seed={self.seed!r} must be a whole number of at least 0")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Read the model's layout; the model stays as it is."""
        known = layout(model)
        stream = known.stream if self.residual else None
        heads = [fold for fold in known.folds if fold.kind == "value"] if self.heads else []
        if stream is not None:
            _check_norms(model, stream)
        left = {"residual stream": known.no_stream} if self.residual and stream is None else {}
        described = None
        if stream is not None:
            described = {name: list(getattr(stream, name)) for name in ("embeddings", "parameters", "writers", "tied")}
            described |= {"norms": {k: list(v) for k, v in stream.norms.items()}, "width": stream.width}
            described["centred"] = stream.centred
        paths = {fold.source: fold.to_json() for fold in heads}
        data = {"kind": self.kind, "seed": self.seed}
        return Plan(KIND, {"stream": described, "paths": paths, "left_alone": left, "data": data})


def _has_biases(model: nn.Module, paths: Iterable[str]) -> bool:
    return all(model.get_submodule(path).bias is not None for path in paths)


def _check_norms(model: nn.Module, stream: Stream) -> None:
    for norm, readers in stream.norms.items():
        module = model.get_submodule(norm)
        bias = getattr(module, "bias", None)
        if bias is None or _has_biases(model, readers) or module.weight.is_meta:
            continue
        if bool(((module.weight == 0) & (bias != 0)).any()):
            raise UsageError(
                f"Rotate: {norm!r} has weights of 0 with a bias, and {readers[0]!r} has no bias to take it in: set residual=False"
            )


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Carry out the rotations. Without its data (an artifact's lineage) tied heads are untied and nothing else is done.

    Raises ArtifactError where the plan does not fit the model.
    """
    stream, data = plan.decisions.get("stream"), plan.decisions.get("data")
    folds = [Fold.from_json(value) for value in plan.decisions.get("paths", {}).values()]
    try:
        if stream is not None:
            stream = Stream(**{k: tuple(v) if isinstance(v, list) else v for k, v in stream.items()})
            for path in (*stream.embeddings, *stream.writers, *stream.norms, *stream.tied):
                model.get_submodule(path)
        for fold in folds:
            for path in (fold.source, *fold.readers):
                model.get_submodule(path)
    except (AttributeError, TypeError) as error:
        raise ArtifactError(f"the rotation plan does not fit this {type(model).__name__}: {error}") from error
    if stream is not None:
        _untie(model, stream.tied)
    if data is None or next(model.parameters()).is_meta:
        return model
    if stream is not None:
        turn_stream(model, stream, rotation(stream.width, data["kind"], data["seed"], stream.centred))
    for index, fold in enumerate(folds):
        turns = [
            rotation(fold.width, data["kind"], data["seed"] + 1 + index * fold.groups + g) for g in range(fold.groups)
        ]
        turn_heads(model, fold, torch.stack(turns))
    return model


def _untie(model: nn.Module, tied: Iterable[str]) -> None:
    for path in tied:
        head = model.get_submodule(path)
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        owners = {
            o: {"tie_word_embeddings": False} for o, c in configurations(model) if getattr(c, "tie_word_embeddings", 0)
        }
        set_configuration(model, owners)


@torch.no_grad()
def turn_stream(model: nn.Module, stream: Stream, q: Tensor) -> None:
    """Rotate the residual stream of a model in place by q (width, width), orthogonal; computed in float64."""
    q = q.to(next(model.parameters()).device)
    for path in stream.embeddings:
        module = model.get_submodule(path)
        if isinstance(module, nn.Embedding):
            _set(module.weight, module.weight.double() @ q)
        else:
            _turn_outputs(module, q)
    parameters = dict(model.named_parameters())
    for name in stream.parameters:
        _set(parameters[name], parameters[name].double() @ q)
    for path in stream.writers:
        _turn_outputs(model.get_submodule(path), q)
    for path, readers in stream.norms.items():
        _turn_readers(model, path, readers, q)


def _turn_outputs(module: nn.Module, q: Tensor) -> None:
    weight = rows(module)
    _set(weight, torch.tensordot(q.T, weight.double(), 1))
    if module.bias is not None:
        _set(module.bias, module.bias.double() @ q)


def _turn_readers(model: nn.Module, path: str, readers: Iterable[str], q: Tensor) -> None:
    norm = model.get_submodule(path)
    gain = norm.weight.double()
    bias = None if getattr(norm, "bias", None) is None else norm.bias.double()
    absorbed = bias is not None and _has_biases(model, readers)
    for reader in map(model.get_submodule, readers):
        weight = columns(reader).double()  # (in, out)
        if absorbed:
            _set(reader.bias, reader.bias.double() + bias @ weight)
        _set(columns(reader), q.T @ (gain[:, None] * weight))
    if bias is not None:
        kept = torch.where(gain == 0, torch.zeros_like(gain), bias / gain)  # W (g n + b) = W diag(g) (n + b / g)
        _set(norm.bias, torch.zeros_like(bias) if absorbed else kept @ q)
    _set(norm.weight, torch.ones_like(gain))


@torch.no_grad()
def turn_heads(model: nn.Module, fold: Fold, turns: Tensor) -> None:
    """Rotate what every head gives: turns (groups, width, width), of a "value" fold; values by R, the output's columns by R again."""
    source, (path,) = model.get_submodule(fold.source), fold.readers
    turns = turns.to(source.weight.device)
    part = slice(fold.start, fold.start + fold.channels)
    weight = rows(source)[part]
    heads = weight.double().unflatten(0, (fold.groups, fold.width))
    _set(weight, torch.einsum("gij,gi...->gj...", turns, heads).flatten(0, 1))
    if source.bias is not None:
        bias = source.bias[part]
        _set(bias, torch.einsum("gij,gi->gj", turns, bias.double().view(fold.groups, fold.width)).flatten())
    reader = columns(model.get_submodule(path))
    heads = reader.double().unflatten(0, (fold.groups, fold.repeat, fold.width))
    _set(reader, torch.einsum("gij,gri...->grj...", turns, heads).flatten(0, 2))


def _set(target: Tensor, values: Tensor) -> None:
    target.copy_(values.to(target.dtype))
