"""Masks against sorts and loops, and zeros that stay zero in training."""

import json

import pytest
import torch
from pruning_cases import IMAGES, MODELS, TOKENS, build
from torch import nn

from limbeck.build import lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan, apply
from limbeck.pruning import ActivationNorm, Magnitude, MaskKeeper, Random, Sparsify, Taylor, reapply_masks
from limbeck.pruning.importance import measure
from limbeck.pruning.sparsity import packed, unpacked


def linears(model):
    kinds = (nn.Linear, nn.Conv2d)
    return {p: m for p, m in model.named_modules() if isinstance(m, kinds) or type(m).__name__ == "Conv1D"}


@pytest.mark.parametrize("name", ["resnet", "encoder", "gpt2"])
def test_global_magnitude_keeps_the_largest(name):
    model, task = build(name)
    weights = {p: m.weight.detach().clone() for p, m in linears(model).items() if p != "lm_head"}
    plan = Sparsify(0.7, ignore=("lm_head",) if name == "gpt2" else ()).plan(model, task)
    assert all(torch.equal(m.weight, weights[p]) for p, m in linears(model).items() if p in weights)
    apply(model, plan)
    cut = torch.cat([w.abs().flatten() for w in weights.values()]).sort().values
    border = cut[round(0.7 * len(cut))]
    for path, weight in weights.items():
        expected = torch.where(weight.abs() >= border, weight, torch.zeros(()))
        assert torch.equal(model.get_submodule(path).weight, expected)
        zeros = (expected == 0).sum().item()
        assert plan.decisions["paths"][path]["zeros"] == zeros
        assert plan.decisions["paths"][path]["sparsity"] == pytest.approx(zeros / weight.numel())


@pytest.mark.parametrize("scope", ["layer", "row"])
def test_layer_and_row_scopes_cut_the_same_share_of_each(scope):
    model, task = build("resnet")
    apply(model, Sparsify(0.25, scope=scope).plan(model, task))
    for module in linears(model).values():
        zeros = module.weight == 0
        if scope == "row":
            rows = zeros.flatten(1).sum(1)
            assert (rows == round(0.25 * zeros[0].numel())).all()
        assert zeros.sum().item() == pytest.approx(0.25 * zeros.numel(), abs=0.5 + len(zeros) * (scope == "row"))


@pytest.mark.parametrize("name", ["resnet", "encoder", "gpt2"])
def test_two_of_four_along_the_input_axis(name):
    model, task = build(name)
    before = {p: m.weight.detach().clone() for p, m in linears(model).items()}
    plan = Sparsify(pattern="2:4").plan(model, task)
    apply(model, plan)
    for path in plan.decisions["paths"]:
        weight, old = model.get_submodule(path).weight.detach(), before[path]
        if type(model.get_submodule(path)).__name__ == "Conv1D":
            weight, old = weight.T, old.T
        weight, old = (w.movedim(1, -1).reshape(-1, 4) for w in (weight, old))
        assert ((weight == 0).sum(1) == 2).all()
        assert torch.equal(weight.abs().sum(1), old.abs().sort(1).values[:, 2:].sum(1)) or torch.allclose(
            weight.abs().sum(1), old.abs().sort(1).values[:, 2:].sum(1)
        )
    if name == "resnet":
        assert "no multiple of 4" in plan.decisions["left_alone"]["conv1"]


def test_wanda_is_weight_times_input_norm_per_row():
    model, task = build("encoder")
    scorer = ActivationNorm(batches=2, batch_size=4)
    path = "blocks.1.feed_forward.up"
    rms = measure(model, task, scorer, [path]).inputs[path]
    weight = model.get_submodule(path).weight.detach().clone()
    apply(model, Sparsify(0.5, scope="row", scorer=scorer, paths=path).plan(model, task))
    for row, found in zip(weight, model.get_submodule(path).weight):
        kept = sorted(range(32), key=lambda j: abs(row[j].item()) * rms[j].item())[16:]
        assert sorted(found.nonzero().flatten().tolist()) == sorted(kept)


def test_taylor_masks_are_not_magnitude_masks():
    model, task = build("encoder")
    by_loss = Sparsify(scorer=Taylor(batches=1, batch_size=4)).plan(model, task)
    by_size, by_chance = Sparsify(scorer=Magnitude()).plan(model, task), Sparsify(scorer=Random()).plan(model, task)
    assert len({by_loss.digest, by_size.digest, by_chance.digest}) == 3


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (8, 8), (2, 3, 3, 3)])
def test_packed_masks_come_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(unpacked(packed(mask), shape, "p"), mask)
    with pytest.raises(ArtifactError, match="does not fit"):
        unpacked(packed(mask), (shape[0] + 9, *shape[1:]), "p")
    with pytest.raises(ArtifactError, match="damaged"):
        unpacked("not base64!", shape, "p")


def test_a_plan_costs_a_bit_per_weight_and_the_lineage_nothing():
    model, task = build("encoder")
    plan = Sparsify(0.5).plan(model, task)
    weights = sum(p["elements"] for p in plan.decisions["paths"].values())
    assert len(json.dumps(plan.decisions["data"])) < weights / 8 * 4 / 3 * 1.1 + 2000
    pruned = apply(model, plan)
    (kept,) = lineage(pruned).plans
    assert "data" not in kept.decisions and kept.decisions["paths"] == plan.decisions["paths"]
    fresh = apply(MODELS["encoder"][0](), Plan.from_json(kept.to_json()))
    fresh.load_state_dict(pruned.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), pruned.parameters()))
    with pytest.raises(ArtifactError, match="MaskKeeper"):
        reapply_masks(fresh, kept)


def test_a_masked_model_is_as_large_as_before():
    model, task = build("resnet")
    size = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in apply(model, Sparsify(0.9).plan(model, task)).parameters()) == size


class OneStep:
    def __init__(self):
        self.seen = []

    def after_step(self, state):
        self.seen.append(state)


@pytest.mark.parametrize("how", ["keeper", "procedure", "plan", "paths"])
def test_zeros_stay_zero_in_training(how):
    model, task = build("encoder")
    plan = Sparsify(0.6).plan(model, task)
    model = apply(model, plan)
    zeros = {p: m.weight == 0 for p, m in linears(model).items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    keeper = MaskKeeper(model, linears(model)) if how == "paths" else MaskKeeper(model)
    procedure = keeper.follow(OneStep())
    for step in range(3):
        batch = next(task.batches("train", 4))
        task.loss(model(batch["input_ids"], batch["attention_mask"]), batch).backward()
        optimizer.step()
        if step == 0:
            assert any((m.weight[zeros[p]] != 0).any() for p, m in linears(model).items())
        if how == "procedure":
            procedure.after_step(step)
        elif how == "plan":
            reapply_masks(model, plan)
        else:
            keeper()
    assert all((m.weight[zeros[p]] == 0).all() for p, m in linears(model).items())
    assert all((m.weight[~zeros[p]] != 0).all() for p, m in linears(model).items())
    assert procedure.seen == ([0, 1, 2] if how == "procedure" else [])


def test_a_keeper_of_an_unmasked_model_does_nothing():
    model, _ = build("encoder")
    procedure = OneStep()
    assert MaskKeeper(model).follow(procedure) is procedure and "after_step" not in vars(procedure)


def test_sparsity_zero_is_the_identity():
    model, task = build("encoder")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    apply(model, Sparsify(0.0).plan(model, task))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_modules_that_calibration_never_called_are_left_alone():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, pixel_values):
            return self.used(pixel_values[:, 0, 0])

    plan = Sparsify(scorer=ActivationNorm(batches=1, batch_size=2)).plan(Lazy(), IMAGES)
    assert set(plan.decisions["paths"]) == {"used"} and "not called" in plan.decisions["left_alone"]["unused"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\)"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"pattern": "4:8"}, "pattern must be"),
        ({"pattern": "2:4", "sparsity": 0.7}, "2:4 has sparsity 0.5"),
        ({"scope": "model"}, "scope must be"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Sparsify(**settings)


def test_other_mistakes_are_named():
    model, task = build("encoder")
    with pytest.raises(UsageError, match="no module is named 'blok"):
        Sparsify(paths="blok*").plan(model, task)
    with pytest.raises(UsageError, match="no weight"):
        Sparsify(paths="norm").plan(model, TOKENS)
    with pytest.raises(ArtifactError, match="does not have"):
        apply(build("resnet")[0], Sparsify().plan(model, task))
