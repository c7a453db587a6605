"""Masked hints against plain loops over masks, channels and places; their limits and their masks."""

import copy
import math

import pytest
import torch
from agreement import agree, draw

from limbeck.errors import UsageError
from limbeck.models import unet
from limbeck.objectives import AtPlaces, CrossEntropy, Hint, MaskedHints
from limbeck.objectives.features.masks import masked_error, overlap
from limbeck.signals import Signals
from limbeck.training import Distil


def made(objective, student, teacher, seed=0):
    torch.manual_seed(seed)
    return objective.connectors(Signals({"layer": student}), Signals({"layer": teacher}))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def dice(masks):
    shared = sum((a * b).sum() for i, a in enumerate(masks) for j, b in enumerate(masks) if i != j)
    squares = sum((a * a).sum() for a in masks)
    return 2 * shared / (squares + squares)


def naive(objective, connectors, student, teacher, counts=None):
    """Features (B, P, C) in float64, one example, mask, channel and place after the other."""
    units = copy.deepcopy(connectors["masks"]).double()
    if "projector" in connectors:
        weight, bias = (p.double().squeeze() for p in connectors["projector"].parameters())
        student = student @ weight.T + bias
    losses = []
    for b, (s, t) in enumerate(zip(student, teacher)):
        if counts is not None:
            s, t = s[counts[b]], t[counts[b]]
        side = {"student": s.detach() if objective.detached else s, "teacher": t}
        x, y = side[objective.query], side[objective.key]
        fused = []
        for place in x:
            query = units.query.weight @ place
            scores = torch.stack([query @ (units.key.weight @ other) for other in y]) / math.sqrt(len(query))
            weights = scores.exp() / scores.exp().sum()
            fused.append(sum(w * (units.value.weight @ other) for w, other in zip(weights, y)))
        fused, error = torch.stack(fused), t - s
        places, width = error.shape
        over_channels = [sigmoid(m * fused.mean(0)) for m in units.channels]
        over_places = [sigmoid(fused @ m) for m in units.places]
        total = 0.0
        for masks, size, rows in ((over_channels, places, error.T), (over_places, width, error)):
            for mask in masks:
                norms = [(m * row).square().sum() for m, row in zip(mask, rows)]
                if objective.weighting == "sum":
                    loss = sum(m * norm for m, norm in zip(mask, norms)) / size
                else:
                    loss = sum(norms) / mask.sum() / size
                total = total + loss / objective.masks
            total = total + objective.diversity * dice(masks)
        losses.append(total)
    return sum(losses) / len(losses)


def flat(x):
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


@pytest.mark.parametrize(
    "objective",
    [
        MaskedHints("layer"),
        MaskedHints("layer", masks=3, weighting="share", diversity=0.3),
        MaskedHints("layer", masks=2, query="student", key="teacher"),
        MaskedHints("layer", masks=2, key="teacher", diversity=0.0),
        MaskedHints("layer", masks=1, detached=True),
    ],
    ids=["paper", "share", "swapped", "teacher", "detached"],
)
@pytest.mark.parametrize(
    ("own", "target"), [((2, 4, 3, 2), (2, 4, 3, 2)), ((2, 3, 2, 2), (2, 5, 2, 2)), ((2, 5, 3), (2, 5, 4))]
)
def test_value_and_gradient_equal_plain_loops(objective, own, target):
    student, teacher = draw(*own), draw(*target, seed=1)
    connectors = made(objective, student, teacher)
    agree(
        objective,
        student,
        teacher,
        {},
        lambda s, t: naive(objective, connectors, flat(s), flat(t)),
        "layer",
        connectors,
    )


def test_padding_is_no_place():
    objective, student, teacher = MaskedHints("layer", masks=3), draw(2, 5, 3), draw(2, 5, 4, seed=1)
    connectors = made(objective, student, teacher)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    reference = lambda s, t: naive(objective, connectors, s, t, mask.bool())  # noqa: E731
    agree(objective, student, teacher, {"attention_mask": mask}, reference, "layer", connectors)


def test_masks_that_are_open_everywhere_make_it_the_squared_error():
    error = draw(2, 7).square()
    torch.testing.assert_close(masked_error(torch.ones(2, 3, 7), error), error.sum(1))
    torch.testing.assert_close(masked_error(torch.ones(2, 3, 7), error, "share"), error.mean(1))
    student, teacher = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1)
    objective = MaskedHints("layer", masks=2, weighting="share", diversity=0.0)
    connectors = made(objective, student, teacher)
    with torch.no_grad():  # units of 0: every mask is 1/2, and 1/4 e / (1/2) is half the mean
        connectors["masks"].channels.zero_(), connectors["masks"].places.zero_()
    signals = Signals({"layer": student}), Signals({"layer": teacher})
    torch.testing.assert_close(
        objective(*signals, {}, connectors).value, Hint("layer", projector="none")(*signals, {}).value
    )


def test_overlap_of_masks():
    apart, equal = torch.eye(3)[None], torch.full((1, 4, 5), 0.3)
    torch.testing.assert_close(overlap(torch.cat([apart, 2 * apart])), torch.zeros(2))
    torch.testing.assert_close(overlap(equal), torch.tensor([3.0]))
    assert float(overlap(torch.zeros(1, 2, 3))) == 0


def test_the_student_enters_the_masks_only_where_it_is_asked():
    teacher = draw(2, 4, 3, 3, seed=1)
    for settings, changes in (({}, True), ({"key": "teacher"}, False), ({"query": "student", "key": "teacher"}, True)):
        objective = MaskedHints("layer", masks=2, **settings)
        connectors = made(objective, teacher, teacher)
        found = [
            objective.made_masks(Signals({"layer": s}), Signals({"layer": teacher}), {}, connectors)[1]
            for s in (draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=5))
        ]
        assert (not torch.equal(*found)) == changes


def test_masks_change_while_it_trains_and_differ_from_each_other():
    torch.manual_seed(0)
    student, teacher = unet((4, 8), 3, layers=1), unet((8, 8), 3, layers=1)
    objective = MaskedHints("up.0", masks=3)
    procedure = Distil(student, teacher, AtPlaces(CrossEntropy()) + 0.1 * objective)
    batch = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.randint(0, 3, (4, 8, 8))}
    procedure.prepare(batch, torch.device("cpu"))
    names = sorted(name for name in procedure.modules if name != "student")
    assert names == ["connector.1_masks", "connector.1_projector"]
    before = {name: p.detach().clone() for name, p in procedure.modules["connector.1_masks"].named_parameters()}
    optimizer = torch.optim.SGD([p for m in procedure.modules.values() for p in m.parameters()], 0.1)
    procedure.step(batch, None)["main"].value.backward()
    optimizer.step()
    for name, parameter in procedure.modules["connector.1_masks"].named_parameters():
        assert not torch.equal(before[name], parameter), name


def test_what_does_not_fit_is_refused():
    vectors = Signals({"layer": draw(2, 4)})
    with pytest.raises(UsageError, match="which have places"):
        MaskedHints("layer").connectors(vectors, vectors)
    maps = Signals({"layer": draw(2, 4, 3, 3)})
    with pytest.raises(UsageError, match="needs masks"):
        MaskedHints("layer")(maps, maps, {})
    wider = Signals({"layer": draw(2, 6, 3, 3)})
    connectors = made(MaskedHints("layer"), maps["layer"], wider["layer"])
    del connectors["projector"]
    with pytest.raises(UsageError, match="4 channels of the student beside 6"):
        MaskedHints("layer")(maps, wider, {}, connectors)
