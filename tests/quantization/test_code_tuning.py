"""Tuning of codes: steps against their formulas written out, limits that are other methods, and what is stored in the end."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.models import gpt
from limbeck.objectives import SoftTargets
from limbeck.plan import apply
from limbeck.quantization import Quantize, TuneCodes, finish_codes, tune_codes
from limbeck.quantization.code_tuning import Coded, largest
from limbeck.signals import call
from limbeck.training.procedures import State

GRIDS = {
    "codebook": {"grid": {"name": "kmeans", "entries": 4, "iterations": 3}, "bits": 2},
    "affine": {"grid": "affine", "bits": 2, "weights": 8},
    "integer": {"bits": 2, "weights": 8},
    "ternary": {"grid": "ternary"},
}


def coded(grid="codebook", seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 16))
    plan = Quantize(activations=None, **GRIDS[grid]).plan(model)
    return tune_codes(copy.deepcopy(model), plan), model, plan


def test_the_chosen_groups_are_those_that_moved_most():
    difference = torch.zeros(3, 10)
    difference[0, 4:8] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    difference[2, 8:] = 1.9
    difference[1, :4] = 0.9
    chosen = largest(difference, 3, 2 / 9)
    expected = torch.zeros(3, 10, dtype=torch.bool)
    expected[0, 4:8] = expected[2, 8:] = True
    assert torch.equal(chosen, expected)
    assert largest(difference, 3, 0.0001).sum() == 2 and largest(difference, 3, 1.0).all()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_three_steps_equal_their_formulas(grid, keep):
    module = coded(grid)[0][0]
    quantizer, latent = module.quantizer, module.matrix.detach().clone()
    moment, packed = torch.rand_like(latent), module.packed  # with none before it all elements would move alike
    module.moment.copy_(moment)
    module.moves += 2
    groups = quantizer.codes(packed).shape[-1]
    size = -(-16 // groups)
    for step in range(3, 6):
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(step))
        module(x).square().sum().backward()
        now = quantizer.decode(packed).detach()
        gradient = 2 * (x @ now.T + module.bias.detach()).T @ x
        moment = 0.95 * moment + 0.05 * gradient**2
        if not keep:
            latent = now.clone()
        latent = latent - 0.3 * gradient / ((moment / (1 - 0.95**step)).sqrt() + 1e-8)
        norms = {
            (r, g): (latent - now)[r, g * size : (g + 1) * size].norm().item() for r in range(6) for g in range(groups)
        }
        best = sorted(norms, key=norms.get, reverse=True)[: max(1, int(0.25 * len(norms)))]
        target = now.clone()
        for r, g in best:
            target[r, g * size : (g + 1) * size] = latent[r, g * size : (g + 1) * size]
        packed = quantizer.project(target, packed)
        module.move(0.3, 0.25, keep)
        torch.testing.assert_close(module.latent, latent, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(module.matrix, quantizer.decode(packed), rtol=1e-5, atol=1e-5)
    assert module.gradient is None and module.moves == 5


@pytest.mark.parametrize("grid", GRIDS)
def test_tables_get_their_exact_gradient(grid):
    module = coded(grid)[0][0]
    x = torch.randn(5, 16)
    module(x).square().sum().backward()
    table = next(p for name, p in module.named_parameters() if name != "bias")
    index, bump = tuple(0 for _ in table.shape), 1e-2
    if grid == "codebook":
        index = (0, int(module.quantizer.codes(module.packed)[0, 0]), 1)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            table[index] += sign * bump
            values.append(module(x).square().sum().item())
            table[index] -= sign * bump
    assert table.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * bump), rel=1e-2, abs=1e-2)


def test_without_a_share_codes_stay_and_with_all_they_follow_the_latent_weight():
    for share in (0.0, 1.0):
        module = coded()[0][0]
        before = module.codes.clone()
        module(torch.randn(5, 16)).square().sum().backward()
        module.move(0.5, share, True)
        if share:
            expected = module.quantizer.project(module.latent, module.packed)
            assert torch.equal(module.codes, expected.codes) and not torch.equal(module.codes, before)
        else:
            assert torch.equal(module.codes, before)


def test_on_a_convex_quadratic_few_codes_at_a_time_find_the_way():
    """min over codes of |(W - W*) x|^2 with W* on the same codebook: it falls to a small part of what it was."""
    module, x = coded()[0][0], torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        aim = module.matrix.flip(0).clone()
    losses = []
    for step in range(60):
        loss = (x @ (module.matrix - aim).t()).square().mean()
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(
            (x @ (held := module.matrix.detach().requires_grad_()).t() - x @ aim.t()).square().mean(), held
        )
        module.gradient = gradient
        module.move(0.1 * (1 - step / 60), 0.1, True)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_finished_and_applied_computes_what_was_tuned(grid):
    torch.manual_seed(0)
    teacher = gpt(30, 8, 1, 32, 4, tied=False).eval()
    settings = {**GRIDS[grid], "activations": None, "only": "blocks.*", "scale_type": "float32"}
    plan = Quantize(**settings).plan(teacher)
    student = tune_codes(copy.deepcopy(teacher), plan)
    procedure = TuneCodes(student, teacher, SoftTargets(temperature=1), rate=0.05, share=0.1)
    batch = {"input_ids": torch.randint(0, 30, (4, 8)), "labels": torch.randint(0, 30, (4, 8))}
    state = State(0, 4, 0.0, 0, torch.device("cpu"))
    procedure.prepare(batch, state.device)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = procedure.step(batch, state)["main"].value
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        procedure.after_step(State(step, 4, 0.0, 0, torch.device("cpu")))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        expected = call(student.eval(), batch)
        model, final = finish_codes(student)
        assert not any(isinstance(m, Coded) for m in model.modules())
        torch.testing.assert_close(call(model, batch), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(call(apply(model, final), batch), expected, rtol=1e-4, atol=1e-5)


def test_models_and_settings_that_cannot_be_right():
    student, model, plan = coded()
    with pytest.raises(UsageError, match="already"):
        tune_codes(student, plan)
    with pytest.raises(UsageError, match="weight-only"):
        tune_codes(model, Quantize(activations="dynamic").plan(model))
    with pytest.raises(UsageError, match="tune_codes first"):
        finish_codes(model)
    with pytest.raises(UsageError, match="tune_codes first"):
        TuneCodes(copy.deepcopy(model), model, SoftTargets(temperature=1))
    for settings in ({"rate": 0.0}, {"share": 1.5}):
        with pytest.raises(UsageError, match="share"):
            TuneCodes(student, model, SoftTargets(temperature=1), **settings)
