"""Calibrated targets against a loop over examples."""

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.objectives import CalibratedTargets, SoftTargets
from limbeck.signals import Signals

C = 4


def example():
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(40, C, generator=draw, dtype=torch.float64, requires_grad=True)
    teacher = 2 * torch.randn(40, C, generator=draw, dtype=torch.float64)
    return student, teacher, torch.randint(0, C, (40,), generator=draw)


def loss(objective, student, teacher, labels):
    return objective(Signals({"logits": student}), Signals({"logits": teacher}), {"labels": labels}).value


@pytest.mark.parametrize("confidence", ["top", "true"])
def test_each_view_is_kept_softened_or_dropped(confidence):
    student, teacher, labels = example()
    objective = CalibratedTargets(0.3, 0.6, 0.9, 0.2, confidence)
    total, counts = 0.0, {"dropped": 0, "label": 0, "teacher": 0}
    for n in range(40):
        t, s, y = teacher[n].softmax(-1), student[n].softmax(-1), int(labels[n])
        c = float(t.max() if confidence == "top" else t[y])
        if c < 0.3 or c > 0.9:
            counts["dropped"] += 1
            continue
        kind = "teacher" if c >= 0.6 else "label"
        counts[kind] += 1
        target = t if kind == "teacher" else torch.tensor([0.8 if i == y else 0.2 / 3 for i in range(C)])
        total = total - sum(target[i] * s[i].log() for i in range(C))
    assert min(counts.values()) > 2
    expected = total / (counts["label"] + counts["teacher"])
    found = loss(objective, student, teacher, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    slopes = [torch.autograd.grad(v, student, retain_graph=True)[0] for v in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-8)


def test_without_thresholds_it_is_soft_targets_and_with_middle_one_the_label():
    student, teacher, labels = example()
    t = teacher.softmax(-1)
    entropy = -(t * t.log()).sum(-1).mean()
    plain = loss(SoftTargets(1.0), student, teacher, labels) + entropy
    torch.testing.assert_close(loss(CalibratedTargets(0.0, 0.0, 1.0), student, teacher, labels), plain)
    hard = loss(CalibratedTargets(0.0, 1.0, 1.0, 0.0), student, teacher, labels)
    torch.testing.assert_close(hard, torch.nn.functional.cross_entropy(student, labels))


def test_where_every_view_is_dropped_nothing_is_learned_and_soft_labels_are_refused():
    student, teacher, labels = example()
    found = loss(CalibratedTargets(0.0, 0.0, 0.01), student, teacher, labels)
    assert found.item() == 0 and float(torch.autograd.grad(found, student)[0].abs().max()) == 0
    with pytest.raises(UsageError, match="mixing"):
        loss(CalibratedTargets(), student, teacher, torch.full((40, C), 0.25))
