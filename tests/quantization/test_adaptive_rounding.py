"""AdaRound, block reconstruction and HQQ against formulas written out anew."""

import copy
import itertools
import math

import pytest
import torch
from rounding_examples import layer
from torch import nn

from limbeck.errors import UsageError
from limbeck.models import gpt, vit
from limbeck.plan import apply
from limbeck.quantization import (
    AdaRound,
    AffineGrid,
    BlockReconstruction,
    HalfQuadratic,
    IntegerGrid,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantize,
    Quantizer,
    TernaryGrid,
)
from limbeck.quantization.adaptive_rounding import (
    Choice,
    adaround,
    annealed,
    indecision,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)
from limbeck.quantization.affine_form import AffineForm
from limbeck.quantization.half_quadratic import half_quadratic, shrink
from limbeck.quantization.hessian import as_parameter, matrix, output_error
from limbeck.quantization.reconstruction import block_loss, reconstruct
from limbeck.quantization.streaming import segments
from limbeck.signals import call, first_tensor


def test_the_rectified_sigmoid_and_its_inverse():
    v = torch.linspace(-6, 6, 25)
    expected = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-x)) - 0.1)) for x in v.tolist()]
    torch.testing.assert_close(rectified_sigmoid(v), torch.tensor(expected))
    h = torch.linspace(0, 1, 11)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(h)), h)


def test_the_penalty_and_its_annealing():
    v = torch.tensor([-5.0, 0.0, 0.7, 5.0], requires_grad=True)
    h = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-x)) - 0.1)) for x in v.tolist()]
    found = indecision(v, 3.0)
    assert found.item() == pytest.approx(sum(1 - abs(2 * x - 1) ** 3 for x in h), rel=1e-5)
    found.backward()
    s = 1 / (1 + math.exp(-0.7))
    slope = -3 * (2 * h[2] - 1) ** 2 * 2 * 1.2 * s * (1 - s)
    assert v.grad[2].item() == pytest.approx(slope, rel=1e-4) and v.grad[0] == 0
    assert annealed(19, 100, 0.2) is None and annealed(20, 100, 0.2) == 20.0
    assert annealed(60, 100, 0.2) == pytest.approx(11.0) and annealed(100, 100, 0.2) == pytest.approx(2.0)


QUANTIZERS = {
    "symmetric": Quantizer(IntegerGrid(3), PerChannel(0)),
    "asymmetric": Quantizer(IntegerGrid(3, False, False), PerGroup(8)),
    "affine": Quantizer(AffineGrid(3), PerGroup(8), scale_type="bfloat16"),
    "tensor": Quantizer(IntegerGrid(3, False, False), PerTensor(), "mse"),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_affine_form_is_the_grid(name):
    weight, _ = layer()
    quantizer = QUANTIZERS[name]
    form, stored = AffineForm.of(weight, quantizer, "a test"), quantizer.encode(weight)
    torch.testing.assert_close(form.values(form.nearest(weight)), quantizer.decode(stored), rtol=1e-6, atol=1e-6)
    packed = form.pack(form.nearest(weight))
    for key, value in stored.tensors.items():
        assert torch.equal(packed.tensors[key], value), key


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_soft_weight_begins_at_the_weight_and_its_choices_are_down_or_up(name):
    weight, _ = layer()
    form = AffineForm.of(weight, QUANTIZERS[name], "a test")
    choice = Choice(weight, form)
    free = (form.ratio(weight) > form.low) & (form.ratio(weight) < form.high)
    torch.testing.assert_close(choice.soft()[free], weight[free], rtol=1e-4, atol=1e-5)
    assert torch.equal(
        choice.codes(), form.nearest(weight).where(form.ratio(weight).frac().abs() != 0.5, choice.codes())
    )
    assert ((choice.codes() - form.ratio(weight)).abs()[free] <= 1).all()


def test_adaround_finds_what_trying_all_roundings_finds():
    """Few weights: every combination of down and up is tried."""
    weight, hessian = layer(3, 8, seed=4)
    hessian = hessian[None]
    form = AffineForm.of(weight, Quantizer(IntegerGrid(3), PerChannel(0)), "a test")
    floor = torch.floor(form.ratio(weight))
    trials = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    errors = torch.stack(
        [output_error(form.values((floor + t).clamp(-3, 3)) - weight, hessian) for t in trials]
    )  # trials, rows
    found = output_error(form.values(adaround(weight, hessian, form, 300, 0.01, 3.0, 0.2)) - weight, hessian)
    nearest = output_error(form.values(form.nearest(weight)) - weight, hessian)
    best = errors.amin(0)
    assert (found >= best - 1e-5).all() and found.sum() <= best.sum() + 0.35 * (nearest.sum() - best.sum())


def test_adaround_is_never_worse_than_the_nearest_and_alone_for_each_row():
    weight, hessian = layer(24, 40)
    hessian = hessian[None]
    quantizer = Quantizer(IntegerGrid(2, False, False), PerGroup(8))
    form = AffineForm.of(weight, quantizer, "a test")
    for steps in (1, 50):
        codes = adaround(weight, hessian, form, steps, 0.05, 3.0, 0.2)
        error, nearest = (output_error(form.values(c) - weight, hessian) for c in (codes, form.nearest(weight)))
        assert (error <= nearest).all()
    assert error.sum() < 0.8 * nearest.sum()


class Batches:
    """As much of a task as calibration reads."""

    def __init__(self, kind):
        generator = torch.Generator().manual_seed(0)
        ids, mask = torch.randint(0, 30, (32, 8), generator=generator), torch.ones(32, 8, dtype=torch.long)
        mask[::3, 5:] = 0
        images = torch.randn(32, 3, 8, 8, generator=generator)
        self.all = {"input_ids": ids, "attention_mask": mask} if kind == "text" else {"pixel_values": images}

    def batches(self, split, batch_size, *, limit=None, **_):
        for start in range(0, 32, batch_size):
            yield {k: v[start : start + batch_size] for k, v in self.all.items()}


MODELS = {"text": lambda: gpt(30, 8, 2, 32, 4, tied=False), "images": lambda: vit(8, 4, 2, depth=2, width=32, heads=4)}


def model(kind):
    torch.manual_seed(2)
    made = MODELS[kind]().eval()
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made


def errors(kind, **settings):
    """Mean squared change of the outputs that count, by way of rounding."""
    made, task = model(kind), Batches(kind)
    out = {}
    for name, rounding in settings.items():
        transform = Quantize(bits=3, weights=16, activations=None, rounding=rounding, batch_size=8)
        quantized = apply(copy.deepcopy(made), transform.plan(made, task))
        with torch.no_grad():
            change = first_tensor(call(quantized, task.all)) - first_tensor(call(made, task.all))
        mask = task.all.get("attention_mask")
        out[name] = (change if mask is None else change[mask.bool()]).square().mean().item()
    return out


@pytest.mark.parametrize("kind", MODELS)
def test_learned_roundings_change_outputs_less_than_the_nearest(kind):
    found = errors(
        kind,
        nearest="nearest",
        adaround=AdaRound(iterations=60, learning_rate=0.03),
        blocks=BlockReconstruction(iterations=60, learning_rate=0.05),
    )
    assert found["adaround"] < 0.9 * found["nearest"] and found["blocks"] < 0.9 * found["nearest"]


def test_block_loss_leaves_hidden_positions_out():
    output, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = [(output[b, i] - target[b, i]).square().sum() for b, i in ((0, 0), (0, 1), (1, 0))]
    assert block_loss(output, target, mask).item() == pytest.approx(sum(expected).item() / 3, rel=1e-5)
    assert block_loss(output, target, None).item() == pytest.approx(
        (output - target).square().sum().item() / 6, rel=1e-5
    )
    image, other = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    assert block_loss(image, other, None).item() == pytest.approx((image - other).square().sum().item() / 18, rel=1e-5)


def test_reconstruction_trains_what_it_is_given_and_leaves_the_block_alone():
    made, task = model("text"), Batches("text")
    segment = next(
        s for s in segments(made, list(task.batches("train", 8)), ["blocks.0.attention.output"], True) if s.path
    )
    before = {k: v.clone() for k, v in segment.block.state_dict().items()}
    gain = torch.tensor(0.5, requires_grad=True)
    weight = segment.module("blocks.0.attention.output").weight.detach()
    losses = reconstruct(
        segment,
        segment.targets,
        lambda: {"attention.output.weight": weight * gain},
        [{"params": [gain], "lr": 0.05}],
        40,
    )
    assert losses[-1] < 0.05 * losses[0] and gain.item() == pytest.approx(1.0, abs=0.1)
    assert all(torch.equal(v, before[k]) for k, v in segment.block.state_dict().items())


def test_a_matrix_becomes_the_parameter():
    for module in (nn.Linear(3, 3), nn.Conv2d(4, 6, 3, groups=2)):
        assert torch.equal(as_parameter(module, matrix(module)), module.weight)


def test_shrinking_is_the_generalized_soft_threshold():
    x = torch.tensor([-2.0, -0.05, 0.0, 0.05, 0.3, 4.0])
    expected = [math.copysign(max(abs(v) - (abs(v) ** -0.3) / 10, 0.0), v) if v else 0.0 for v in x.tolist()]
    torch.testing.assert_close(shrink(x, 10.0, 0.7), torch.tensor(expected))


def test_hqq_equals_its_steps_written_out():
    weight, _ = layer(4, 16)
    quantizer = Quantizer(AffineGrid(2), PerGroup(8))
    form = AffineForm.of(weight, quantizer, "a test")
    found = half_quadratic(weight, form, 0.7, 10.0, 1.01, 20)
    for row in range(4):
        for group in range(2):
            assert found.scale[row, group] == form.scale[row, group]
    # by hand: all groups together, as long as the mean error over the whole weight falls
    scale, offset, beta = form.scale.clone(), form.offset.clone(), 10.0
    w, best, least = weight.view(4, 2, 8), offset.clone(), math.inf
    for step in range(21):
        codes = torch.round((w - offset[..., None]) / scale[..., None]).clamp(0, 3)
        values = codes * scale[..., None] + offset[..., None]
        error = (w - values).abs().mean().item()
        if error >= least:
            break
        best, least = offset.clone(), error
        if step:
            beta *= 1.01
        r = w - values
        sparse = r.sign() * (r.abs() - r.abs().clamp(min=1e-30) ** -0.3 / beta).clamp(min=0)
        offset = (w - sparse - codes * scale[..., None]).mean(-1)
    torch.testing.assert_close(found.offset, best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", ["affine", None])
def test_hqq_is_never_worse_in_the_mean_error_and_reads_no_data(grid):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        made[0].weight[:, ::16] *= 6  # outliers
    settings = {"bits": 3, "weights": 32, "activations": None, "grid": grid}
    by = {
        name: apply(copy.deepcopy(made), Quantize(**settings, rounding=name).plan(made)) for name in ("hqq", "nearest")
    }
    mean = {name: (m[0].weight - made[0].weight).abs().mean().item() for name, m in by.items()}
    assert mean["hqq"] < mean["nearest"] if grid else mean["hqq"] <= mean["nearest"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdaRound(iterations=0), "iterations=0"),
        (lambda: AdaRound(learning_rate=0), "learning_rate=0"),
        (lambda: AdaRound(warmup=1.0), "warmup=1.0"),
        (lambda: BlockReconstruction(penalty=-1), "penalty=-1"),
        (lambda: HalfQuadratic(p=1.0), "p=1.0"),
        (lambda: HalfQuadratic(kappa=0.5), "kappa=0.5"),
        (
            lambda: AffineForm.of(
                torch.ones(2, 4), Quantizer(TernaryGrid(), method=TernaryGrid.methods[0]), "AdaRound"
            ),
            "AdaRound works on",
        ),
        (lambda: HalfQuadratic().layer(torch.ones(2, 4), None, Quantizer(IntegerGrid(4))), "no"),
        (lambda: AffineGrid(9), "bits=9"),
    ],
)
def test_settings_that_cannot_be_right(make, words):
    with pytest.raises(UsageError, match=words):
        make()
