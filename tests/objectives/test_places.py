"""An objective at every place of a map: the same as on a long list of places."""

import pytest
import torch
from agreement import agree, draw
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import AtPlaces, CrossEntropy, DecoupledKD, Hint, SoftTargets
from limbeck.signals import Signals, place_logits

LABELS = torch.randint(0, 4, (2, 3, 5), generator=torch.Generator().manual_seed(0))


def flat(x):
    return torch.stack([x[b, :, i, j] for b in range(x.shape[0]) for i in range(x.shape[2]) for j in range(x.shape[3])])


def test_cross_entropy_counts_the_places_that_have_a_class():
    labels = LABELS.clone()
    labels[0, 1], labels[1, :, 2] = -100, -100

    def reference(student, _):
        rows, at = flat(student).log_softmax(-1), labels.flatten()
        return -sum(row[y] for row, y in zip(rows, at) if y != -100) / (at != -100).sum()

    agree(AtPlaces(CrossEntropy()), draw(2, 4, 3, 5), draw(2, 4, 3, 5), {"labels": labels}, reference)


@pytest.mark.parametrize("objective", [SoftTargets(2.0), DecoupledKD(), CrossEntropy() + 0.5 * SoftTargets(1.0)])
def test_it_is_the_objective_on_a_list_of_places(objective):
    def reference(student, teacher):
        signals = Signals({"logits": flat(student)}), Signals({"logits": flat(teacher)})
        return objective(*signals, {"labels": LABELS.flatten()}).value

    agree(AtPlaces(objective), draw(2, 4, 3, 5), draw(2, 4, 3, 5, seed=1), {"labels": LABELS}, reference)


def test_logits_of_another_size_are_resized_to_the_labels():
    small, teacher = draw(2, 4, 2, 2), draw(2, 4, 6, 4, seed=1)

    def reference(student, target):
        sides = [F.interpolate(x, (3, 5), mode="bilinear", align_corners=False) for x in (student, target)]
        signals = [Signals({"logits": flat(x)}) for x in sides]
        return SoftTargets(2.0)(*signals, {"labels": LABELS.flatten()}).value

    agree(AtPlaces(SoftTargets(2.0)), small, teacher, {"labels": LABELS}, reference)
    resized = AtPlaces(SoftTargets(2.0))(Signals({"logits": small}), Signals({"logits": teacher}), {}).value
    assert bool(resized.isfinite())  # without labels: the teacher's size


def test_classes_come_last_and_only_maps_are_taken():
    x = draw(2, 4, 3, 5)
    assert torch.equal(place_logits(x, (3, 5))[1, 2, 4], x[1, :, 2, 4])
    with pytest.raises(UsageError, match=r"\(B, classes, H, W\)"):
        place_logits(draw(2, 4), (3, 5))
    with pytest.raises(UsageError, match="logits alone"):
        AtPlaces(Hint("head"))
