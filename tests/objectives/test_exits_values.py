"""Enhanced targets and exits against plain formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models import resnet, vit
from limbeck.objectives import AtExit, CrossEntropy, EnhancedTargets, SoftTargets
from limbeck.objectives.exits import MapExit
from limbeck.signals import Signals, capture
from limbeck.tasks import CustomTask
from limbeck.training import Distil, Trainer, TrainingConfig


def pair(seed=0, shape=(5, 4)):
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(shape, generator=draw, dtype=torch.float64)
    return student, teacher, torch.randint(0, shape[-1], shape[:-1], generator=draw)


def both(objective, reference, student, teacher, labels):
    ours = objective(Signals({"logits": student}), Signals({"logits": teacher}), {"labels": labels}).value
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (ours, reference)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("raised", ["target", "all"])
def test_enhanced_targets_are_the_sum_over_classes(gamma, temperature, label, raised):
    student, teacher, labels = pair()
    total = 0.0
    for n in range(5):
        t, s = (teacher[n] / temperature).softmax(-1), (student[n] / temperature).softmax(-1)
        for c in range(4):
            if c == int(labels[n]):
                weight = (1 + t[c]) ** gamma - (0 if label else 1)
            else:
                weight = t[c] ** gamma if raised == "all" else t[c]
            total = total - weight * s[c].log()
    objective = EnhancedTargets(gamma, label, raised, temperature=temperature)
    both(objective, total / 5, student, teacher, labels)


def test_gamma_one_is_cross_entropy_plus_distillation():
    student, teacher, labels = pair(1)
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
    signals = Signals({"logits": student}), Signals({"logits": teacher}), {"labels": labels}
    plain = (CrossEntropy() + SoftTargets(1.0))(*signals).value + entropy
    both(EnhancedTargets(1.0), plain, student, teacher, labels)
    both(EnhancedTargets(1.0, raised="all"), plain, student, teacher, labels)
    without = SoftTargets(1.0)(*signals).value + entropy
    both(EnhancedTargets(1.0, label=False), without, student, teacher, labels)


def test_an_exit_applies_the_objective_to_its_branch():
    feature, (_, teacher, labels) = torch.randn(5, 6, requires_grad=True), pair()
    objective = AtExit("layer", EnhancedTargets())
    signals = Signals({"layer": feature}), Signals({"logits": teacher.float()})
    branch = objective.connectors(*signals)["branch"]
    found = objective(*signals, {"labels": labels}, {"branch": branch}).value
    logits = feature @ branch.weight.T + branch.bias
    expected = EnhancedTargets()(Signals({"logits": logits}), signals[1], {"labels": labels}).value
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, feature, retain_graph=True)[0] for v in (found, expected)))


def test_the_branch_of_a_map_halves_and_doubles():
    x, branch = torch.randn(3, 4, 8, 8), MapExit(4, 7, 2)
    y = x
    for at in (0, 4):
        deep, wide, norm, _ = branch.layers[at : at + 4]
        y = F.conv2d(y, deep.weight, stride=2, padding=1, groups=y.shape[1])
        y = F.relu(F.group_norm(F.conv2d(y, wide.weight), 1, norm.weight, norm.bias))
    assert y.shape == (3, 16, 2, 2)
    torch.testing.assert_close(branch(x), branch.head(y.mean((2, 3))))
    torch.testing.assert_close(branch(x)[:1], branch(x[:1]))  # examples do not mix


@pytest.mark.parametrize(
    ("student", "layer", "teacher"),
    [(lambda: resnet(8, 5, width=4), "layer1", lambda: vit(8, 4, 5, depth=1, width=16, heads=2)),
     (lambda: vit(8, 4, 5, depth=2, width=16, heads=2), "blocks.0", lambda: resnet(8, 5, width=4))],
)  # fmt: skip
def test_it_trains_a_student_of_another_family_and_the_branch_is_not_part_of_it(student, layer, teacher):
    data = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    task = CustomTask(dict.fromkeys(("train", "validation", "test"), data), classes=5)
    model, names = student(), None
    names = list(model.state_dict())
    step = Distil(model, teacher(), CrossEntropy() + AtExit(layer, EnhancedTargets(label=False)))
    history = Trainer(TrainingConfig(steps=3, batch_size=8), progress=False).run(step, task)
    assert list(model.state_dict()) == names and len(history.steps) == 3
    assert any("branch" in name for name in step.modules)
    assert capture(model, task.example(2)).logits.shape == (2, 5)


def test_what_does_not_fit_is_refused():
    objective = AtExit("layer", SoftTargets())
    with pytest.raises(UsageError, match="classes"):
        AtExit("layer", CrossEntropy()).connectors(Signals({"layer": torch.zeros(2, 3)}), Signals({}))
    with pytest.raises(UsageError, match="layer"):
        objective.connectors(Signals({"layer": torch.zeros(2)}), Signals({"logits": torch.zeros(2, 3)}))
    with pytest.raises(UsageError, match="three classes"):
        EnhancedTargets()(*[Signals({"logits": torch.zeros(2, 2)})] * 2, {"labels": torch.zeros(2, dtype=torch.long)})
    assert isinstance(
        AtExit("layer", CrossEntropy(), classes=3).connectors(Signals({"layer": torch.zeros(2, 3)}), Signals({}))[
            "branch"
        ],
        nn.Linear,
    )
