"""Sensitivity: what changing one part of a model costs, measured part by part.

Hessian trace   curvature of the loss: a change d of random direction costs about tr(H) |d|^2 / (2 n)
output KL       of the model's answers before and after the change
noise           of a layer's own output, relative to its energy
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UsageError
from limbeck.objectives.divergences import kl_divergence, log_probabilities
from limbeck.objectives.positions import mean, weights
from limbeck.signals import call, first_tensor, to_device

Key = TypeVar("Key", bound=Hashable)


def hessian_trace(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], samples: int = 32, seed: int = 0
) -> list[float]:
    """The trace of the loss's Hessian in each parameter, by Hutchinson's estimator: tr(H) = E[v^T H v], v_i = +1 or -1.

    loss: computes the scalar loss with its graph; called once. parameters: tensors that require a gradient. The estimate's
    variance is 2 (|H|^2 - sum_i H_ii^2) / samples for one parameter: exact where H is diagonal. Costs one backward pass per sample through the
    gradient's graph. Source: Hutchinson, 1990; for sensitivities: Dong et al., "HAWQ-V2", NeurIPS 2020, eq. 8.
    Raises UsageError for fewer than one sample.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise UsageError(f"hessian_trace: samples={samples!r} must be a whole number of at least 1")
    draws = torch.Generator().manual_seed(seed)
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
    known = [i for i, gradient in enumerate(gradients) if gradient is not None and gradient.requires_grad]
    traces = [0.0] * len(parameters)
    for _ in range(samples if known else 0):
        signs = [torch.randint(0, 2, parameters[i].shape, generator=draws) * 2.0 - 1.0 for i in known]
        signs = [sign.to(parameters[i]) for sign, i in zip(signs, known)]
        products = torch.autograd.grad(
            [gradients[i] for i in known],
            [parameters[i] for i in known],
            grad_outputs=signs,
            retain_graph=True,
            allow_unused=True,
        )
        for i, sign, product in zip(known, signs, products):
            if product is not None:
                traces[i] += float((sign * product).sum()) / samples
    return traces


def weight_traces(
    model: nn.Module,
    loss: Callable[[Tensor, Mapping[str, Any]], Tensor],
    batches: Iterable[Mapping[str, Any]],
    paths: Sequence[str],
    samples: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Hessian trace of the mean loss in the weight of each named module, averaged over batches.

    loss(logits, batch): such as `task.loss`. Attention runs in its plain form, whose gradient has a gradient. The model's
    gradients stay as they are. Raises DataError without a batch.
    """
    chosen = [model.get_submodule(path).weight for path in paths]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    totals, count = dict.fromkeys(paths, 0.0), 0
    device = next(model.parameters()).device
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight in chosen:
            weight.requires_grad_(True)
        for count, batch in enumerate(batches, 1):
            batch = to_device(batch, device)
            with torch.enable_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                found = hessian_trace(
                    lambda b=batch: loss(first_tensor(call(model, b)), b), chosen, samples, seed + count
                )
            totals = {path: totals[path] + trace for path, trace in zip(paths, found)}
    finally:
        for parameter, own in wanted:
            parameter.requires_grad_(own)
    if not count:
        raise DataError("weight_traces: there is no batch to measure the loss on")
    return {path: total / count for path, total in totals.items()}


@contextlib.contextmanager
def with_weights(model: nn.Module, changed: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The model with other values in the weights of the named modules, put back on leaving."""
    kept = {}
    try:
        with torch.no_grad():
            for path, value in changed.items():
                weight = model.get_submodule(path).weight
                kept[path] = weight.detach().clone()
                weight.copy_(value)
        yield model
    finally:
        with torch.no_grad():
            for path, value in kept.items():
                model.get_submodule(path).weight.copy_(value)


@torch.no_grad()
def output_divergence(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], changes: Mapping[Key, Callable[[], Mapping[str, Tensor]]]
) -> dict[Key, float]:
    """Mean KL(p || p_changed) of the model's answers over the positions that count, for each change of weights.

        Omega(change) = 1/N sum_x KL( softmax M(x) || softmax M_changed(x) )

    batches: kept in memory; their labels are not needed. changes: each gives {module path: weight} when it is its turn. The model is
    run as it is (put it into evaluation mode) and ends as it was. Source: Cai et al., "ZeroQ", CVPR 2020, eq. 4.
    """
    if not batches:
        raise DataError("output_divergence: there is no batch to compare answers on")
    device = next(model.parameters()).device
    batches = [to_device(batch, device) for batch in batches]
    usual = [log_probabilities(first_tensor(call(model, batch))) for batch in batches]
    found = {}
    for key, make in changes.items():
        total = count = 0.0
        with with_weights(model, make()):
            for batch, expected in zip(batches, usual):
                divergence = kl_divergence(expected, log_probabilities(first_tensor(call(model, batch))))
                counted = weights(batch, divergence.shape)
                size = float(divergence.numel() if counted is None else counted.sum())
                total += float(mean(divergence, counted)) * size
                count += size
        found[key] = total / max(count, 1.0)
    return found


def output_noise(change: Tensor, weight: Tensor, gram: Tensor) -> float:
    """Noise of a layer's output relative to its energy: tr(D G D^T) / tr(W G W^T).

    change D, weight W: (out, in); gram G: (in, in), the sum of x x^T over inputs. A layer that puts out nothing has 0.
    """
    change, weight, gram = change.double(), weight.double(), gram.double()
    noise, energy = (float(((m @ gram) * m).sum()) for m in (change, weight))
    return noise / energy if energy > 0 else 0.0
