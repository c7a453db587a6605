"""Layered self-distillation against loops over stages and examples."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.datasets.augment import Rotations
from limbeck.errors import UsageError
from limbeck.models import resnet, vit
from limbeck.objectives import CrossEntropy, LayeredSelfDistillation
from limbeck.signals import Signals, capture
from limbeck.tasks import CustomTask
from limbeck.training import Distil, OnViews, Supervised, Trainer, TrainingConfig

STAGES = ("layer1", "layer2", "layer3")


def example(objective, seed=0):
    torch.manual_seed(seed)
    model = resnet(8, 5, 1, 4).eval()
    batch = {"pixel_values": torch.randn(6, 1, 8, 8), "labels": torch.randint(0, 5, (6,))}
    signals = capture(model, batch, objective.reads.student)
    return model, batch, signals, objective.connectors(signals, Signals({}))


def by_hand(objective, batch, signals, made, labels):
    features, logits = [], []
    for k, stage in enumerate(STAGES):
        if f"branch{k}" in made:
            branch = made[f"branch{k}"]
            features.append(branch.layers(signals[stage]).mean((2, 3)))
            logits.append(features[-1] @ branch.head.weight.T + branch.head.bias)
        else:
            features.append(signals[stage].mean((2, 3)))
            logits.append(signals.logits)
    total = sum(F.cross_entropy(logits[k], labels) for k in range(3) if f"branch{k}" in made)
    T = objective.temperature
    for k in range(2):
        deeper = k + 1 if objective.pairing == "next" else 2
        p = (logits[deeper] / T).softmax(-1).detach()
        kl = F.kl_div((logits[k] / T).log_softmax(-1), p, reduction="batchmean")
        gap = sum((features[k][n] - features[deeper][n].detach()).square().mean() for n in range(len(labels))) / len(
            labels
        )
        total = total + objective.logits_weight * T**2 * kl + objective.features_weight * gap
    return total


@pytest.mark.parametrize("pairing", ["last", "next"])
@pytest.mark.parametrize("classes", [None, 7])
def test_it_is_the_sum_over_stages(pairing, classes):
    objective = LayeredSelfDistillation(
        STAGES, classes, pairing=pairing, temperature=2.0, logits_weight=0.7, features_weight=0.3
    )
    _, batch, signals, made = example(objective)
    assert len(made) == (2 if classes is None else 3)
    found = objective(signals, Signals({}), batch, made).value
    expected = by_hand(objective, batch, signals, made, batch["labels"])
    torch.testing.assert_close(found, expected)
    weights = [p for branch in made.values() for p in branch.parameters()]
    for one, other in zip(*(torch.autograd.grad(v, weights, retain_graph=True) for v in (found, expected))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_deepest_stage_is_taught_by_labels_only():
    objective = LayeredSelfDistillation(STAGES, 7)
    _, batch, signals, made = example(objective)
    last = list(made["branch2"].parameters())
    full = torch.autograd.grad(objective(signals, Signals({}), batch, made).value, last)
    alone = LayeredSelfDistillation(STAGES, 7, logits_weight=0, features_weight=0)
    for one, other in zip(full, torch.autograd.grad(alone(signals, Signals({}), batch, made).value, last)):
        torch.testing.assert_close(one, other)


def test_weights_of_nothing_leave_the_label_losses():
    objective = LayeredSelfDistillation(STAGES, 7, logits_weight=0, features_weight=0)
    _, batch, signals, made = example(objective)
    expected = sum(
        F.cross_entropy(made[f"branch{k}"](signals[stage]), batch["labels"]) for k, stage in enumerate(STAGES)
    )
    torch.testing.assert_close(objective(signals, Signals({}), batch, made).value, expected)


def test_joint_labels_of_rotated_images_train_and_nothing_stays():
    data = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    task = CustomTask(dict.fromkeys(("train", "validation", "test"), data), classes=3)
    model = resnet(8, 3, 1, 4)
    names = list(model.state_dict())
    objective = CrossEntropy() + LayeredSelfDistillation(STAGES, 12, "joint_labels")
    step = OnViews(Distil(model, None, objective), Rotations())
    Trainer(TrainingConfig(steps=2, batch_size=6), progress=False).run(step, task)
    assert list(model.state_dict()) == names
    assert sum("branch" in name for name in step.modules) == 3


def test_tokens_get_branches_too():
    model = vit(8, 4, 5, 1, depth=2, width=8, heads=2).eval()
    objective = LayeredSelfDistillation(("blocks.0", "blocks.1"), 6, heads=2)
    batch = {"pixel_values": torch.randn(3, 1, 8, 8), "labels": torch.tensor([0, 5, 2])}
    signals = capture(model, batch, objective.reads.student)
    made = objective.connectors(signals, Signals({}))
    assert bool(objective(signals, Signals({}), batch, made).value.isfinite())
    assert len(made["branch0"].blocks) == 1 and len(made["branch1"].blocks) == 0


def test_what_does_not_fit_is_refused():
    objective = LayeredSelfDistillation(STAGES, 7, "joint_labels")
    _, batch, signals, made = example(objective)
    with pytest.raises(UsageError, match="joint_labels"):
        objective(signals, Signals({}), batch, made)
    with pytest.raises(UsageError, match="branches"):
        objective(signals, Signals({}), {**batch, "joint_labels": batch["labels"]}, {})
    uneven = Signals({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)})
    with pytest.raises(UsageError, match="features_weight=0"):
        LayeredSelfDistillation(("a", "b"), 4).connectors(uneven, Signals({}))
    assert Supervised(resnet(8, 3, 1, 4), objective).teacher is None
