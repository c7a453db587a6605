"""Pseudo-subclasses: what splits the classes, that the classes' probabilities stay, and a student that learns them."""

import pytest
import torch
from torch import nn

from limbeck.build import build, lineage
from limbeck.conversion import Replace
from limbeck.errors import UsageError
from limbeck.models import resnet
from limbeck.models.subclasses import SubclassHead
from limbeck.objectives import OnSignal, SoftTargets
from limbeck.plan import apply
from limbeck.signals import Signals, capture
from limbeck.teachers import FrozenTeacher, SubclassTeacher, class_clusters, class_projections

N, D = 60, 6


def clouds(seed=0):
    """Two classes of three clouds each, far apart along directions of their own."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(N) % 2
    hidden = torch.arange(N) % 6
    centres = 8 * torch.randn(6, D, generator=draw)
    return centres[hidden] + torch.randn(N, D, generator=draw), labels, hidden


def test_scores_of_projections_are_those_of_principal_directions_of_one_scale():
    features, labels, _ = clouds()
    scores = class_projections(features, labels, 3)(features)
    for label in range(2):
        own = scores[labels == label, label].double()
        centred = features[labels == label].double() - features[labels == label].double().mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / (len(own) - 1))
        white = centred @ vectors[:, -3:] / values[-3:].sqrt()
        torch.testing.assert_close(own @ own.T, white @ white.T, rtol=1e-4, atol=1e-4)  # the same but for a turn
        torch.testing.assert_close(torch.cov(own.T), torch.eye(3).double(), rtol=1e-4, atol=1e-4)


def test_what_the_classifier_reads_is_taken_out():
    features, labels, _ = clouds()
    weight = torch.randn(2, D)
    splitter = class_projections(features, labels, 3, weight)
    moved = features + torch.randn(N, 2) @ weight
    torch.testing.assert_close(splitter(moved), splitter(features), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(class_projections(features, labels, 3)(moved), splitter(features), atol=0.1)


def test_clusters_find_clouds():
    features, labels, hidden = clouds()
    found = class_clusters(features, labels, 3, seed=1)(features)
    for label in range(2):
        at = labels == label
        nearest = found[at, label].argmax(-1)
        for cloud in hidden[at].unique():
            assert len(nearest[hidden[at] == cloud].unique()) == 1
    centres = class_clusters(features, labels, 3, seed=1).centres
    distance = (features[:, None, None] - centres).square().sum(-1)
    torch.testing.assert_close(found.argmax(-1), distance.argmin(-1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, D), nn.ReLU(), nn.Linear(D, 2))


def test_subclasses_share_their_classs_probability():
    features, labels, _ = clouds()
    model = network()
    splitter = class_projections(features, labels, 3, model[2].weight.detach())
    teacher, batch = (
        SubclassTeacher(FrozenTeacher(model), "1", splitter, temperature=0.5),
        {"pixel_values": torch.randn(5, 4)},
    )
    found = teacher.signals(batch, frozenset({"logits", "subclasses"}))
    own = found["subclasses"].exp().view(5, 2, 3)
    torch.testing.assert_close(own.sum(-1), found.logits.softmax(-1))
    hidden = capture(model, batch, {"1"})["1"].detach()
    for n in range(5):
        for c in range(2):
            scores = (hidden[n] - splitter.means[c]) @ splitter.axes[c] / 0.5
            torch.testing.assert_close(own[n, c] / own[n, c].sum(), scores.softmax(-1), rtol=1e-4, atol=1e-6)


def test_a_head_answers_the_sums_of_its_subclasses():
    head, x = SubclassHead(D, 2, 3), torch.randn(7, D)
    fine = head.linear(x).softmax(-1)
    torch.testing.assert_close(head(x).softmax(-1), torch.stack([fine[:, :3].sum(1), fine[:, 3:].sum(1)], 1))
    one = SubclassHead(D, 2, 1)
    torch.testing.assert_close(one(x), one.linear(x))


def test_a_student_with_such_a_head_learns_the_subclasses_and_is_built_again():
    model = resnet(8, 2, 1, 2)
    plan = Replace("fc", "limbeck.models.subclasses:SubclassHead", {"width": 8, "classes": 2, "subclasses": 3}).plan(
        model
    )
    apply(model, plan)
    found = capture(model.eval(), {"pixel_values": torch.randn(4, 1, 8, 8)}, {"logits", "fc.linear"})
    assert found.logits.shape == (4, 2)
    teacher = Signals({"subclasses": found["fc.linear"].detach()})
    objective = OnSignal("fc.linear", SoftTargets(temperature=1.0), teacher="subclasses")
    assert float(objective(found, teacher, {}).value.detach()) == pytest.approx(0, abs=1e-6)
    assert [n for n, _ in build(lineage(model).factory).named_parameters()][:3] == [
        n for n, _ in model.named_parameters()
    ][:3]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: class_projections(*clouds()[:2], 1), "subclasses=1"),
        (lambda: class_projections(*clouds()[:2], 7), "directions"),
        (lambda: class_clusters(*clouds()[:2], 30), "smallest class"),
        (lambda: SubclassHead(4, 2, 0), "subclasses=0"),
        (lambda: SubclassTeacher(FrozenTeacher(network()), "1", nn.Identity(), 0.0), "temperature"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UsageError, match=words):
        call()
