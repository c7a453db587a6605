"""Segmentation metrics against sets of places."""

import math

import pytest
import torch

from limbeck.measure import confusion_matrix, intersection_over_union, segmentation_metrics


def test_they_equal_what_sets_of_places_say():
    draw = torch.Generator().manual_seed(0)
    said, labels = (torch.randint(0, 4, (3, 6, 5), generator=draw) for _ in range(2))
    labels[0, :2], labels[2, 1] = -100, -100
    labels[labels == 3], said[said == 3] = 2, 1  # class 3 is not there at all
    confusion = confusion_matrix(said, labels, 4)
    places = [i for i, y in enumerate(labels.flatten().tolist()) if y != -100]
    found, wrong, right = intersection_over_union(confusion), [], []
    for c in range(4):
        it, called = ({i for i in places if x.flatten()[i] == c} for x in (labels, said))
        if it | called:
            wrong.append(len(it & called) / len(it | called))
            assert float(found[c]) == pytest.approx(wrong[-1])
        else:
            assert math.isnan(float(found[c]))
        right += [len(it & called) / len(it)] if it else []
    metrics = segmentation_metrics(confusion)
    assert metrics["mean_iou"] == pytest.approx(sum(wrong) / len(wrong)) and len(wrong) == 3
    assert metrics["class_accuracy"] == pytest.approx(sum(right) / len(right))
    hits = sum(labels.flatten()[i] == said.flatten()[i] for i in places)
    assert metrics["accuracy"] == pytest.approx(float(hits) / len(places))


def test_a_class_that_is_said_but_never_there_counts_as_zero_and_matrices_add_up():
    labels, said = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 0])
    assert segmentation_metrics(confusion_matrix(said, labels, 3))["mean_iou"] == pytest.approx((3 / 4 + 0) / 2)
    halves = sum(confusion_matrix(said[i : i + 2], labels[i : i + 2], 3) for i in (0, 2))
    assert torch.equal(halves, confusion_matrix(said, labels, 3))
