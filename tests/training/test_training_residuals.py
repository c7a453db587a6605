"""Residuals against a sum over examples by hand, and what they make of an objective's weights."""

import copy

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import DataError, UsageError
from limbeck.models import vit
from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.tasks import ImageClassification
from limbeck.training import Distil, residuals, reweighted


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    task = ImageClassification("digits", examples={"train": 30})
    teacher = vit(8, 4, 10, depth=2, width=16, heads=2, channels=1).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return task, teacher, student


def test_they_are_the_means_over_examples(setting):
    task, teacher, student = setting
    objective = 0.0 * CrossEntropy() + 3.0 * SoftTargets(1.0) + Hint("blocks.0") + 0.5 * Hint("blocks.1")
    student.train()
    found = residuals(Distil(student, teacher, objective), task, examples=30, batch_size=8)  # batches of 8, 8, 8 and 6
    assert student.training
    batch = next(iter(task.batches("train", 30)))
    images = batch["pixel_values"]
    student.eval()
    with torch.no_grad():
        hidden = [[], []]
        for model, kept in zip((student, teacher), hidden):
            x = model.embed(images)
            for block in model.blocks:
                x = block(x)
                kept.append(x)
        answers = F.kl_div(student(images).log_softmax(1), teacher(images).softmax(1), reduction="batchmean")
        features = [float((a - b).square().mean()) for a, b in zip(*hidden)]
    assert found == pytest.approx((0.0, float(answers), *features), rel=1e-5)


def test_large_residuals_get_large_weights_and_the_sum_stays(setting):
    objective = 2.0 * CrossEntropy() + 0.5 * Hint("blocks.0") + 0.5 * Hint("blocks.1") + 0.0 * Hint("norm")
    found = reweighted(objective, (9.0, 1.0, 3.0, 5.0), Hint)
    assert [weight for _, weight in found.terms] == pytest.approx([2.0, 0.25, 0.75, 0.0])
    assert [term for term, _ in found.terms] == [term for term, _ in objective.terms]
    assert reweighted(objective, (9.0, 2.0, 2.0, 0.0), Hint) == objective
    assert reweighted(objective, (9.0, 0.0, 0.0, 0.0), Hint) == objective


def test_what_cannot_be_weighed(setting):
    _, teacher, student = setting
    objective = CrossEntropy() + Hint("blocks.0")
    with pytest.raises(UsageError, match="1 values for an objective of 2 terms"):
        reweighted(objective, (1.0,), Hint)
    with pytest.raises(UsageError, match="no term of"):
        reweighted(objective, (1.0, 1.0), SoftTargets)
    with pytest.raises(UsageError, match="finite"):
        reweighted(objective, (1.0, float("nan")), Hint)

    class Empty:
        def batches(self, *_, **__):
            return iter(())

    with pytest.raises(DataError, match="no batch"):
        residuals(Distil(student, teacher, objective), Empty())
