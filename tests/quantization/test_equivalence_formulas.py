"""Scales, clips and rotations of the function-preserving transforms against naive passes and closed forms."""

import pytest
import torch
from equivalence_models import Task, made
from torch import nn

from limbeck.plan import apply
from limbeck.quantization import AWQ, ClipWeights, SmoothQuant
from limbeck.quantization.equivalence.hadamard import hadamard, rotation
from limbeck.quantization.equivalence.smooth import smoothing_scale
from limbeck.signals import Tap


def test_smoothing_scale_is_the_formula():
    activation, weight = torch.tensor([4.0, 0.0, 9.0]), torch.tensor([0.5, 1.0, 2.0])
    found = smoothing_scale(activation, weight, 0.25)
    torch.testing.assert_close(found, torch.tensor([4**0.25 / 0.5**0.75, 1.0, 9**0.25 / 2**0.75]).double())


def test_smoothquant_against_a_naive_pass():
    """alpha = 1: afterwards every channel that the projections read has the largest magnitude 1."""
    model, task = made("encoder"), Task(False)
    apply(model, SmoothQuant(1.0, batch_size=8, examples=32).plan(model, task))
    largest = torch.zeros(32)
    with torch.no_grad(), Tap(model, {"blocks.1.feed_forward.up:input"}) as tap:
        for batch in task.batches("train", 8, limit=32):
            largest = torch.maximum(largest, tap(batch)["blocks.1.feed_forward.up:input"].flatten(0, 1).abs().amax(0))
    torch.testing.assert_close(largest, torch.ones(32), rtol=1e-4, atol=1e-4)


def test_padding_does_not_count():
    model = made("encoder")

    class Padded(Task):
        def batches(self, split, batch_size, *, limit=None, **_):
            for batch in super().batches(split, batch_size, limit=limit):
                mask = torch.ones_like(batch["input_ids"])
                mask[:, 5:] = 0
                yield {
                    "input_ids": batch["input_ids"].where(mask == 1, torch.tensor(self.filler)),
                    "attention_mask": mask,
                }

    first, second = Padded(False), Padded(False)
    first.filler, second.filler = 0, 7
    plans = [SmoothQuant(batch_size=8).plan(model, task).digest for task in (first, second)]
    assert plans[0] == plans[1]


def rounded(weight, group, bits=3):
    """Asymmetric rounding to nearest per row and group, written anew."""
    out = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            scale = (high - low) / (2**bits - 1)
            zero = round(-low / scale)
            out[row, start : start + group] = ((part / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale
    return out


def test_awq_against_a_naive_search():
    model, task = made("encoder"), Task(False)
    for channel in (3, 17):
        model.blocks[0].norm1.weight.data[channel] *= 12
    search = AWQ(3, "channel", grid=4, kinds="norm", batch_size=8, examples=16)
    plan = search.plan(model, task)
    inputs = []
    with torch.no_grad(), Tap(model, {"blocks.0.attention.query:input"}) as tap:
        for batch in task.batches("train", 8, limit=16):
            inputs.append(tap(batch)["blocks.0.attention.query:input"].flatten(0, 1))
    x = torch.cat(inputs)
    readers = [getattr(model.blocks[0].attention, name).weight.detach() for name in ("query", "key", "value")]
    errors = []
    for step in range(5):
        scale = x.abs().mean(0) ** (step / 4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        errors.append(sum(float(((x / scale) @ rounded(w * scale, 32).T - x @ w.T).square().sum()) for w in readers))
    best = min(range(5), key=errors.__getitem__)
    assert best > 0 and plan.decisions["exponents"]["blocks.0.norm1"] == best / 4
    assert errors[best] < 0.8 * errors[0]


def test_clip_limits_against_a_naive_search():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 3))
    layer[0].weight.data[0, 1], layer[0].weight.data[2, 6] = 3.0, -2.0
    x = torch.randn(40, 8)

    class Rows:
        def batches(self, split, batch_size, **_):
            yield {"input": x}

    clip = ClipWeights(3, 4, False, steps=10, smallest=0.3)
    weight = layer[0].weight.detach().clone()
    apply(layer, clip.plan(layer, Rows()))
    for row in range(3):
        for start in (0, 4):
            part = weight[row, start : start + 4]
            limits = [float(part.abs().max()) * (1 - step / 10) for step in range(8)]

            def error(limit, part=part, start=start):
                change = rounded(part.clamp(-limit, limit)[None], 4)[0] - part
                return float((x[:, start : start + 4] @ change).square().sum())

            best = min(limits, key=error)
            torch.testing.assert_close(layer[0].weight[row, start : start + 4].detach(), part.clamp(-best, best))


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 36, 40, 64, 96, 768])
def test_hadamard_matrices(order):
    matrix = hadamard(order)
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0} and (matrix[:, 0] == 1).all()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["hadamard", "random"])
@pytest.mark.parametrize(("size", "keep_mean"), [(16, False), (16, True), (10, False), (10, True)])
def test_rotations_are_orthogonal_and_keep_the_mean_where_asked(kind, size, keep_mean):
    turn = rotation(size, kind, 4, keep_mean)
    torch.testing.assert_close(turn @ turn.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    ones = torch.ones(size, dtype=torch.float64)
    assert torch.allclose(turn @ ones, ones) == keep_mean
    assert turn.square().amax() < 0.9 and not torch.equal(turn, rotation(size, kind, 5, keep_mean))
