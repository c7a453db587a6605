"""Weight aligning: the arms run, and the composition is the paper's."""

import math
from dataclasses import replace

import pytest
import torch

from limbeck.beds.incremental import Incremental
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers import weight_aligning as wa
from limbeck.signals import Signals

TINY = Incremental(dataset="digits", size=8, train=20, held=5, test=5, memory=4, epochs=1, phases=2)


@pytest.mark.parametrize(
    "switches",
    [{"distil": True, "align": True}, {"distil": True}, {"distil": False}, {"distil": True, "nearest_mean": True}],
)
def test_the_arms_run(tmp_path, switches):
    one = Run(0, "validation", Store(tmp_path))
    found = wa.learn(one, 0.05, bed=TINY, **switches)
    assert all(math.isfinite(value) for value in found.values()) and 0 <= found["average_accuracy"] <= 1
    assert ("gamma" in found) == switches.get("align", False)
    assert one.costs["steps"] == 2 + 2


def test_the_objective_is_the_papers_sum():
    student, teacher, labels = torch.randn(4, 6), torch.randn(4, 2), torch.tensor([0, 5, 3, 2])
    p = (teacher / 2).softmax(-1)
    soft = -(p * (student[:, :2] / 2).log_softmax(-1)).sum(-1).mean() + (p * p.log()).sum(-1).mean()
    expected = (1 - 2 / 6) * torch.nn.functional.cross_entropy(student, labels) + 2 / 6 * soft
    found = wa.objective(2, 6)(Signals({"logits": student}), Signals({"logits": teacher}), {"labels": labels}).value
    torch.testing.assert_close(found, expected)


def test_all_arms_have_as_many_settings_and_the_bed_is_shared():
    assert len({len(arm.candidates()) for arm in wa.paper.arms.values()}) == 1
    assert replace(wa.paper.miniature.beds[0]).digest() == wa.bed.digest()
