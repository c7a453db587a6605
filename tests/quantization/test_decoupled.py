"""decoupleQ: the normal equations against least squares written out, every round against the one before, few weights against all."""

import copy
import itertools

import pytest
import torch
from rounding_examples import layer

from limbeck.errors import UsageError
from limbeck.models import gpt
from limbeck.plan import Plan, apply
from limbeck.quantization import (
    GPTQ,
    AffineGrid,
    DecoupleQ,
    IntegerGrid,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantize,
    Quantizer,
)
from limbeck.quantization.affine_form import AffineForm
from limbeck.quantization.decoupled import decoupled, fitted
from limbeck.quantization.hessian import damped, output_error
from limbeck.signals import call


@pytest.mark.parametrize("size", [5, 8, None], ids=["groups", "short_last_group", "channel"])
@pytest.mark.parametrize(
    "grid", [AffineGrid(2), IntegerGrid(2), IntegerGrid(3, False, False)], ids=["affine", "symmetric", "integer"]
)
def test_parameters_are_those_of_least_squares(grid, size):
    weight, hessian = layer()
    quantizer = Quantizer(grid, PerGroup(size) if size else PerChannel(0))
    form = AffineForm.of(weight, quantizer, "a test")
    codes = form.nearest(weight)
    found = fitted(weight, codes, hessian, form)
    root = torch.linalg.cholesky(hessian.double()).T  # |root e|^2 = e^T H e
    groups = torch.arange(20) // (size or 20)
    count = int(groups[-1]) + 1
    for row in range(len(weight)):
        q = codes[row].double()
        if not form.fits_offset:
            q = q - form.zero_point.reshape(6, -1)[row].double()[groups]
        columns = [root @ (q * (groups == g)) for g in range(count)]
        if form.fits_offset:
            columns += [root @ (groups == g).double() for g in range(count)]
        expected = torch.linalg.lstsq(torch.stack(columns, 1), (root @ weight[row].double())[:, None]).solution[:, 0]
        sound = expected[:count] > 0
        torch.testing.assert_close(
            found.scale.reshape(6, -1)[row][sound].double(), expected[:count][sound], rtol=1e-4, atol=1e-4
        )
        if form.fits_offset:
            torch.testing.assert_close(
                found.offset.reshape(6, -1)[row][sound].double(), expected[count:][sound], rtol=1e-4, atol=1e-4
            )
        assert (found.scale > 0).all()


@pytest.mark.parametrize("scale_type", ["float32", "bfloat16"])
def test_the_error_of_no_row_ever_rises_and_is_that_of_what_is_stored(scale_type):
    weight, hessian = layer(16, 40)
    quantizer = Quantizer(AffineGrid(2), PerGroup(8), scale_type=scale_type)
    form = AffineForm.of(weight, quantizer, "a test")
    codes, final, history = decoupled(weight, hessian, form, rounds=4)
    assert all((after <= before).all() for before, after in itertools.pairwise(history))
    stored = quantizer.decode(final.pack(codes))
    h = damped(hessian, 0.01)[None]
    torch.testing.assert_close(output_error(stored - weight, h), history[-1], rtol=1e-4, atol=1e-4)
    by_gptq = quantizer.decode(GPTQ().layer(weight, hessian[None], quantizer))
    assert history[-1].sum() < 0.7 * output_error(by_gptq - weight, h).sum()


def test_few_weights_come_near_the_best_of_all_codes():
    weight, hessian = layer(8, 4, seed=3)
    quantizer = Quantizer(AffineGrid(1), PerChannel(0))
    form = AffineForm.of(weight, quantizer, "a test")
    h = damped(hessian, 0.01)
    least = torch.full((8,), torch.inf)
    for trial in itertools.product((0.0, 1.0), repeat=4):
        if len(set(trial)) == 2:
            codes = torch.tensor(trial).expand(8, 4)
            least = torch.minimum(least, output_error(fitted(weight, codes, h, form).values(codes) - weight, h[None]))
    *_, history = decoupled(weight, hessian, form, rounds=10)
    assert (history[-1] >= least - 1e-4).all() and (history[-1] <= least + 1e-4).float().mean() >= 0.5


class Tokens:
    def __init__(self):
        self.ids = torch.randint(0, 30, (16, 8), generator=torch.Generator().manual_seed(0))

    def batches(self, split, batch_size, *, limit=None, **_):
        for start in range(0, 16, batch_size):
            yield {"input_ids": self.ids[start : start + batch_size]}


def test_on_a_model_it_beats_gptq_tunes_norms_and_replays():
    torch.manual_seed(0)
    model, task = gpt(30, 8, 2, 32, 4, tied=False).eval(), Tokens()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = {"bits": 2, "weights": 16, "activations": None, "grid": "affine", "batch_size": 8, "only": "blocks.*"}
    plans = {
        name: Quantize(**settings, rounding=rounding).plan(model, task)
        for name, rounding in (
            ("gptq", "gptq"),
            ("decoupled", DecoupleQ(epochs=6, learning_rate=1e-3)),
            ("layers", DecoupleQ(epochs=0)),
        )
    }
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    errors, batch = {}, {"input_ids": task.ids}
    with torch.no_grad():
        for name, plan in plans.items():
            quantized = apply(copy.deepcopy(model), Plan.from_json(plan.to_json()))
            errors[name] = (call(quantized, batch) - call(model, batch)).square().mean().item()
    assert errors["layers"] < errors["gptq"] and errors["decoupled"] < errors["layers"]
    tuned = plans["decoupled"].decisions["data"]["parameters"]
    assert set(tuned) == {
        f"blocks.{i}.{name}" for i in (0, 1) for name, _ in model.blocks[0].named_parameters() if "norm" in name
    }
    assert "parameters" not in plans["layers"].decisions["data"]


def test_a_training_that_made_a_block_worse_is_dropped():
    torch.manual_seed(0)
    model, task = gpt(30, 8, 2, 32, 4, tied=False).eval(), Tokens()
    for grid, scale_type in (("affine", "bfloat16"), ("affine", "float32"), (None, "float32")):
        settings = {"bits": 3, "weights": 16, "activations": None, "batch_size": 8, "only": "blocks.*"}
        settings |= {"scale_type": scale_type, **({"grid": grid} if grid else {})}
        wild, none = (
            Quantize(**settings, rounding=rounding).plan(model, task).decisions["data"]
            for rounding in (DecoupleQ(epochs=1, learning_rate=30.0), DecoupleQ(epochs=0))
        )
        assert wild == none, (grid, scale_type)


def test_convolutions_with_groups():
    torch.manual_seed(0)
    weight, quantizer = torch.randn(6, 18), Quantizer(AffineGrid(2), PerChannel(0))
    hessians = torch.stack([layer(columns=18, seed=seed)[1] for seed in (0, 1)])
    whole = quantizer.decode(DecoupleQ().layer(weight, hessians, quantizer))
    for part, h, rows in zip(whole.chunk(2), hessians, weight.chunk(2)):
        alone = DecoupleQ().layer(rows, h[None], quantizer)
        torch.testing.assert_close(part, quantizer.decode(alone))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DecoupleQ(rounds=-1), "rounds=-1"),
        (lambda: DecoupleQ(epochs=-1), "epochs=-1"),
        (lambda: DecoupleQ(damping=0), "damping=0"),
        (lambda: DecoupleQ(learning_rate=-1), "learning_rate=-1"),
        (
            lambda: DecoupleQ().layer(torch.ones(2, 4), torch.eye(4)[None], Quantizer(AffineGrid(2), PerTensor())),
            "per channel or per group",
        ),
    ],
)
def test_settings_that_cannot_be_right(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_norms_may_be_left_alone():
    model, task = gpt(30, 8, 1, 32, 4, tied=False).eval(), Tokens()
    quantize = Quantize(
        bits=2, activations=None, grid="affine", only="blocks.*", rounding=DecoupleQ(epochs=1, norms=False)
    )
    assert "parameters" not in quantize.plan(model, task).decisions["data"]
