"""Truncated SVD against closed forms."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.build import lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.factorization import LowRank
from limbeck.factorization.low_rank import LowRankPair, factorized, factors, leading, matrix, read_rows
from limbeck.models import encoder, resnet, vit
from limbeck.plan import Plan, apply
from limbeck.signals import call, first_tensor


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Task:
    """Images whose channels and pixels are correlated, so that weighing by inputs matters."""

    def example(self, batch_size=1):
        return {"pixel_values": normal(batch_size, 3, 16, 16)}

    def batches(self, split, batch_size, *, seed=None, **_):
        assert split == "train"
        for number in range(2):
            yield {
                "pixel_values": normal(batch_size, 3, 16, 16, seed=number).cumsum(-1),
                "labels": torch.zeros(batch_size, dtype=torch.long),
            }


def conv(**settings):
    torch.manual_seed(0)
    return nn.Conv2d(6, 10, (3, 2), **settings)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_error_is_the_tail_of_the_singular_values(rank):
    weight = normal(12, 7)
    values = torch.linalg.svdvals(weight.double())
    up, down = factors(weight, leading(weight)[0][:, :rank])
    error = (up @ down - weight.double()).square().sum()
    assert error.item() == pytest.approx(values[rank:].square().sum().item(), abs=1e-10)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_data_aware_error_on_the_outputs_is_the_tail_of_the_weighted_singular_values(rank):
    weight, x = (
        normal(12, 7),
        normal(500, 7, seed=1) @ normal(7, 7, seed=2) * torch.tensor([4.0, 0.1, 1, 3, 0.2, 1, 0.1]),
    )
    moment = x.T @ x / len(x)
    basis, values = leading(weight, moment)
    up, down = factors(weight, basis[:, :rank])
    difference = x.double() @ (up @ down - weight.double()).T
    error = difference.square().sum(1).mean().item()
    total = (x @ weight.T).square().sum(1).mean().item()
    ridge = 1e-3 * moment.diagonal().mean().item() * (up @ down - weight.double()).square().sum().item()
    assert error + ridge == pytest.approx(values[rank:].square().sum().item(), rel=1e-5, abs=1e-9 * total)
    plain = x.double() @ (torch.matmul(*factors(weight, leading(weight)[0][:, :rank])) - weight.double()).T
    if rank < 7:
        assert error < 0.95 * plain.square().sum(1).mean().item(), "weighing by the inputs has to pay"


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(9, 5),
        nn.Linear(5, 9, bias=False),
        conv(),
        conv(stride=2, padding=1, dilation=(2, 1)),
        conv(padding="same", bias=False),
        conv(padding=(2, 1), padding_mode="circular"),
    ],
)
def test_full_rank_is_exact(module):
    x = (
        normal(4, 9 if getattr(module, "in_features", 0) == 9 else 5)
        if isinstance(module, nn.Linear)
        else normal(2, 6, 9, 8)
    )
    pair = factorized(module, min(matrix(module).shape))
    torch.testing.assert_close(pair(x), module(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pair.weight, module.weight, rtol=1e-4, atol=1e-5)
    assert pair.bias is None if module.bias is None else torch.equal(pair.bias, module.bias)


@pytest.mark.parametrize(
    "module",
    [conv(), conv(stride=2, padding=1, dilation=(2, 1)), conv(padding="same"), conv(padding=2, padding_mode="reflect")],
)
def test_rows_are_what_the_weight_matrix_multiplies(module):
    x = normal(2, 6, 9, 8)
    by_rows = read_rows(module, x, {}).float() @ matrix(module).T + module.bias
    torch.testing.assert_close(by_rows, module(x).movedim(1, -1).reshape(-1, 10), rtol=1e-4, atol=1e-5)


def outputs(model, batch):
    with torch.no_grad():
        return first_tensor(call(model.eval(), batch))


@pytest.mark.parametrize("data_aware", [False, True])
@pytest.mark.parametrize("make", [lambda: resnet(8), lambda: vit(16, 4, depth=1, width=32, heads=4)])
def test_a_plan_replays_and_layers_that_would_grow_are_left_alone(make, data_aware):
    torch.manual_seed(0)
    model, task = make(), Task()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = LowRank(energy=0.5, data_aware=data_aware, batches=2, batch_size=4).plan(model, task)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    ranks, left = plan.decisions["ranks"], plan.decisions["left_alone"]
    layers = {p for p, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert ranks and set(ranks) | set(left) == layers and not set(ranks) & set(left)
    size = sum(p.numel() for p in model.parameters())
    twin = make()
    twin.load_state_dict(before)
    small = apply(model, plan)
    saved = sum(v["before"] - v["after"] for v in plan.decisions["layers"].values())
    assert sum(p.numel() for p in small.parameters()) == size - saved < size
    batch = {"pixel_values": normal(3, 3, 16, 16, seed=9)}
    found = outputs(small, batch)

    again = apply(twin, Plan.from_json(json.loads(json.dumps(plan.to_json()))))
    assert torch.equal(outputs(again, batch), found)
    (lean,) = lineage(small).plans
    fresh = apply(make(), lean)
    assert "data" not in lean.decisions
    assert outputs(fresh, batch).isnan().any() == data_aware, "a data-aware plan without its data must not pass for one"
    fresh.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(outputs(fresh, batch), found)
    first_tensor(call(small.train(), batch)).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_the_module_computes_the_truncated_matrix():
    model = nn.Sequential(nn.Linear(16, 12))
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    left, values, right = torch.linalg.svd(weight)
    apply(model, LowRank(rank=4).plan(model))
    x = normal(5, 16)
    expected = x @ (left[:, :4] @ values[:4].diag() @ right[:4]).T + bias
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_rank_choices():
    model = nn.Sequential(nn.Linear(16, 12, bias=False))
    basis = torch.linalg.qr(normal(12, 12)).Q, torch.linalg.qr(normal(16, 16, seed=1)).Q
    values = torch.tensor([8.0, 4.0, 2.0, 1.0] + [0.5] * 8)
    with torch.no_grad():
        model[0].weight.copy_(basis[0] @ values.diag() @ basis[1][:12])
    squares = values.square()
    share = (squares.cumsum(0) / squares.sum()).tolist()  # .736 .920 .966 .977 ...
    for rank in (1, 2, 3):
        for energy in (share[rank - 1] - 1e-4, (share[rank - 2] if rank > 1 else 0) + 1e-4):
            assert LowRank(energy=energy).plan(model).decisions["ranks"] == {"0": rank}
    assert LowRank(keep_parameters=0.5).plan(model).decisions["ranks"] == {"0": int(0.5 * 192 / 28)}
    assert LowRank(rank=6).plan(model).decisions["ranks"] == {"0": 6}
    assert LowRank(rank=7).plan(model).decisions["ranks"] == {}  # 7 * 28 > 192
    assert "196 weights instead of 192" in LowRank(rank=7).plan(model).decisions["left_alone"]["0"]
    assert LowRank(rank=6, minimum_gain=0.2).plan(model).decisions["ranks"] == {}
    error = LowRank(rank=2).plan(model).decisions["layers"]["0"]["relative_error"]
    assert error == pytest.approx((squares[2:].sum() / squares.sum()).sqrt().item(), rel=1e-4)


def test_energy_one_and_full_rank_change_nothing():
    torch.manual_seed(0)
    model = resnet(8)
    batch = {"pixel_values": normal(2, 3, 16, 16)}
    expected = outputs(model, batch)
    for transform in (LowRank(energy=1.0), LowRank(rank=10_000), LowRank(keep_parameters=1.0)):
        plan = transform.plan(model)
        found = outputs(apply(model, plan), batch)
        if transform.keep_parameters is None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert all(v["after"] < v["before"] for v in plan.decisions["layers"].values())


def test_paths_ignore_and_special_layers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped, self.a, self.b = nn.Conv2d(4, 8, 3, groups=2), nn.Linear(32, 32), nn.Linear(32, 32)
            self.tied, self.zero = nn.Linear(32, 32), nn.Linear(32, 32)
            self.tied.weight = self.a.weight
            nn.init.zeros_(self.zero.weight)

    plan = LowRank(rank=2, ignore="b").plan(Odd())
    assert plan.decisions["ranks"] == {}
    assert plan.decisions["left_alone"] == {
        "grouped": "a Conv2d of this form is not factorized",
        "a": "its weight is shared with another module",
        "b": "ignored",
        "tied": "its weight is shared with another module",
        "zero": "its weight is zero",
    }
    assert LowRank(rank=2, paths=("b",)).plan(Odd()).decisions["ranks"] == {"b": 2}


def test_a_transformer_layer_of_torch_still_runs():
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval()
    plan = LowRank(rank=8).plan(model)
    assert set(plan.decisions["ranks"]) == {"linear1", "linear2"}
    apply(model, plan)
    x = normal(2, 5, 32)
    with torch.no_grad():
        fused = model(x)
        y = model.norm1(x + model._sa_block(x, None, None))
        by_hand = model.norm2(y + model.linear2(F.relu(model.linear1(y))))
    torch.testing.assert_close(fused, by_hand, rtol=1e-4, atol=1e-5)
    assert isinstance(model.linear1, LowRankPair)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be"),
        ({"energy": 0}, r"energy must lie in \(0, 1\]"),
        ({"energy": 1.2}, "energy"),
        ({"keep_parameters": 0}, "keep_parameters"),
        ({"rank": 2, "energy": 0.5}, "give one of"),
        ({"minimum_gain": 1}, "minimum_gain"),
        ({"batches": 0}, "batches"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        LowRank(**settings)


def test_other_mistakes_are_named():
    model = encoder(50, 2, 16, 1, 32, 4)
    with pytest.raises(UsageError, match="Did you mean 'head'"):
        LowRank(paths="haed").plan(model)
    with pytest.raises(UsageError, match="pass the task"):
        LowRank(data_aware=True).plan(model)
    plan = LowRank(rank=4).plan(model)
    with pytest.raises(ArtifactError, match="lacks"):
        apply(resnet(8), plan)
    damaged = Plan(
        "low_rank", {**plan.decisions, "data_aware": True, "data": dict.fromkeys(plan.decisions["ranks"], "AAAA")}
    )
    with pytest.raises(ArtifactError, match="damaged or has another size"):
        apply(model, damaged)
