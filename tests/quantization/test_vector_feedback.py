"""Feedback between vectors against a naive re-computation in float64, with the inverse Hessian of the free vectors kept explicitly."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.plan import apply
from limbeck.quantization import (
    PerChannel,
    PerGroup,
    PerTensor,
    PyramidGrid,
    Quantize,
    Quantizer,
    VectorFeedback,
    named,
)
from limbeck.quantization.gptq import gptq
from limbeck.quantization.grids import IntegerGrid
from limbeck.quantization.hessian import output_error
from limbeck.quantization.lattices import nearest_point
from limbeck.quantization.pyramids import gain_levels, onto_pyramid
from limbeck.quantization.rounding import scale_rows
from limbeck.quantization.vector_feedback import vector_feedback

PYRAMID = PyramidGrid(8, 6, 3, "beta")
UNIFORM = PyramidGrid(4, 5, 3)
GRANULARITIES = {"channel": PerChannel(0), "tensor": PerTensor(), "groups": PerGroup(16)}


def layer(rows=12, columns=36, seed=0, samples=60):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator) * 2
    x = torch.randn(samples, columns, generator=generator) @ mix
    hessian = 2 / samples * x.T @ x
    return torch.randn(rows, columns, generator=generator), (hessian + hessian.T) / 2


def along_the_pyramid(grid, levels, target, scale, metric):
    """Every level is tried, and the one of least error under the metric is taken."""
    filled = torch.nn.functional.pad(target.float(), (0, grid.entries - target.shape[1]))
    points = onto_pyramid(filled, grid.pulses)
    unit = (points / points.norm(dim=1, keepdim=True))[:, : target.shape[1]].double()
    tried = scale[:, None, None].double() * levels.double()[None, :, None] * unit[:, None]
    off = tried - target[:, None]
    best = torch.einsum("rli,ij,rlj->rl", off, metric, off).argmin(1)
    return tried[torch.arange(len(best)), best]


def naive(weight, hessian, quantizer, damping, order):
    """Optimal brain quantization by vectors in float64; the dequantized weight."""
    grid, columns = quantizer.grid, weight.shape[1]
    size = getattr(grid, "entries", 8)
    hessian = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    scale = quantizer.encode(weight).scale.float()
    levels = grid.levels(weight.shape, quantizer.granularity) if isinstance(grid, PyramidGrid) else None
    vectors = list(torch.arange(columns).split(size))
    if order:
        vectors.sort(key=lambda v: -float(hessian.diagonal()[v].mean()))
    free, moved, out = torch.cat(vectors), weight.double().clone(), torch.zeros(weight.shape, dtype=torch.float64)
    for vector in vectors:
        inverse = torch.linalg.inv(hessian[free][:, free])
        own, rest, free = (
            inverse[: len(vector), : len(vector)],
            inverse[: len(vector), len(vector) :],
            free[len(vector) :],
        )
        group = int(vector[0]) // quantizer.granularity.size if isinstance(quantizer.granularity, PerGroup) else 0
        s = scale[:, group] if scale.dim() == 2 else scale.expand(len(weight))
        if levels is None:
            filled = torch.nn.functional.pad(moved[:, vector].float(), (0, size - len(vector)))
            out[:, vector] = (nearest_point(filled / s[:, None], grid.width)[0] * s[:, None]).double()[:, : len(vector)]
        else:
            out[:, vector] = along_the_pyramid(grid, levels, moved[:, vector], s, torch.linalg.inv(own))
        error = out[:, vector] - moved[:, vector]
        moved[:, free] += error @ torch.linalg.inv(own) @ rest
    return out


@pytest.mark.parametrize("act_order", [True, False], ids=["act_order", "stored_order"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", [PYRAMID, UNIFORM, named("e8", 2)], ids=["beta", "uniform", "e8"])
def test_it_equals_the_naive_computation(grid, granularity, act_order):
    weight, hessian = layer()
    quantizer = Quantizer(grid, GRANULARITIES[granularity], grid.methods[0])
    found = VectorFeedback(damping=0.02, act_order=act_order, hessian_type="float64").layer(
        weight, hessian.double()[None], quantizer
    )
    quantizer.check(found)
    expected = naive(weight, hessian, quantizer, 0.02, act_order)
    torch.testing.assert_close(quantizer.decode(found).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [PYRAMID, UNIFORM, named("e8", 2)], ids=["beta", "uniform", "e8"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_with_an_identity_hessian_it_is_rounding_to_the_nearest(grid, granularity):
    weight, _ = layer()
    quantizer = Quantizer(grid, GRANULARITIES[granularity], grid.methods[0], "bfloat16")
    found, nearest = VectorFeedback().layer(weight, torch.eye(36)[None], quantizer), quantizer.encode(weight)
    assert torch.equal(found.codes, nearest.codes) and torch.equal(found.scale, nearest.scale)


def test_vectors_of_one_column_are_gptq():
    weight, hessian = layer()
    quantizer = Quantizer(IntegerGrid(4), PerChannel(0))
    scale = quantizer.parameters(weight)[0]

    def put(x, s, metric):
        codes = torch.round(x / s[:, None]).clamp(-7, 7)
        return codes, codes * s[:, None]

    scales, group = scale_rows(scale, *weight.shape, PerChannel(0))
    found = vector_feedback(weight, hessian.double(), scales, group, put, 1, 0.02, True)
    assert torch.equal(found.to(torch.int8), gptq(weight, hessian.double(), quantizer, 0.02)[0])


def test_each_group_of_a_convolution_has_its_own_hessian():
    weight, first = layer()
    second = layer(seed=3)[1]
    quantizer, method = Quantizer(PYRAMID, PerChannel(0)), VectorFeedback()
    both = quantizer.decode(method.layer(weight, torch.stack([first, second]), quantizer))
    halves = [method.layer(w, h[None], quantizer) for w, h in zip(weight.chunk(2), (first, second))]
    torch.testing.assert_close(both, torch.cat([quantizer.decode(half) for half in halves]))


def test_feedback_lowers_the_error_of_the_output():
    quantizer = Quantizer(PYRAMID, PerChannel(0))
    for seed in range(3):
        weight, hessian = layer(32, 64, seed, 200)
        method = VectorFeedback()
        left = [
            float(output_error(quantizer.decode(p) - weight, hessian[None]).sum())
            for p in (method.layer(weight, hessian[None], quantizer), quantizer.encode(weight))
        ]
        assert left[0] < 0.8 * left[1]


def test_lengths_lie_at_quantiles_of_a_beta_distribution():
    middles = (torch.arange(8) + 0.5) / 8
    closed = (1 - (1 - middles) ** (2 / 14)).sqrt()  # Beta(1, b) has F(x) = 1 - (1 - x)^b
    torch.testing.assert_close(gain_levels("beta", 3, 2, 16), closed)
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    share = x.unflatten(1, (8, 8)).norm(dim=2) / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gain_levels("beta", 3, 8, 64), share.flatten().quantile(middles), rtol=0, atol=3e-3)
    assert gain_levels("uniform", 2, 8, 64).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert gain_levels("beta", 2, 8, 8).tolist() == [1.0] * 4
    grid, shape = PyramidGrid(8, 6, 3, "beta"), (12, 64)
    for granularity, shared in ((PerChannel(0), 64), (PerTensor(), 768), (PerGroup(16), 16)):
        assert torch.equal(grid.levels(shape, granularity), gain_levels("beta", 3, 8, shared))


def test_the_scale_of_beta_lengths_is_the_norm():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    quantizer = Quantizer(PyramidGrid(8, 6, 5, "beta"), PerChannel(0))
    packed = quantizer.encode(x)
    torch.testing.assert_close(packed.scale, x.norm(dim=1))
    lengths = quantizer.decode(packed).unflatten(1, (8, 8)).norm(dim=2) / packed.scale[:, None]
    assert ((lengths.unsqueeze(-1) - gain_levels("beta", 5, 8, 64)).abs().amin(-1) < 1e-5).all()


def test_on_gaussian_numbers_pyramids_beat_integers_and_codebooks_of_numbers():
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))

    def error(grid, granularity, method):
        quantizer = Quantizer(named(grid), granularity, method, "bfloat16")
        packed = quantizer.encode(x)
        return float((quantizer.decode(packed) - x).square().mean()), packed.nbytes * 8 / x.numel()

    pyramid = {"name": "pyramid", "entries": 16, "pulses": 11, "gain_bits": 2, "gains": "beta"}
    found, bits = error(pyramid, PerChannel(0), "minmax")
    codebook, more = error({"name": "kmeans", "index_bits": 2}, PerChannel(0), "kmeans")
    integer, most = error({"name": "integer", "bits": 2}, PerGroup(64), "minmax")
    assert bits <= min(most, more) and found < 0.5 * integer and found < codebook


def test_a_model_with_two_linear_layers_reloads_from_its_plan():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 8))

    class Task:
        def batches(self, split, batch_size, **_):
            yield {"x": torch.randn(64, 24, generator=torch.Generator().manual_seed(1))}

    grid = {"name": "pyramid", "entries": 8, "pulses": 8, "gain_bits": 3, "gains": "beta"}
    quantize = Quantize(activations=None, grid=grid, rounding="vector_feedback", scale_type="bfloat16")
    plan = quantize.plan(model, Task())
    made = apply(copy.deepcopy(model), plan)
    x = torch.randn(5, 24)
    assert (made(x) - model(x)).square().mean() < 0.2 * model(x).square().mean()
    assert type(made[0]).__name__ == "QuantizedLinear" and made[0].specification.quantizer.grid.gains == "beta"


def test_settings_that_cannot_be_right():
    with pytest.raises(UsageError, match="damping"):
        VectorFeedback(damping=0.0)
    with pytest.raises(UsageError, match="gains='normal'"):
        PyramidGrid(gains="normal")
    weight, hessian = layer()
    with pytest.raises(UsageError, match="GPTQ for single columns"):
        VectorFeedback().layer(weight, hessian[None], Quantizer(IntegerGrid(4), PerChannel(0)))
