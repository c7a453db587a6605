"""Prototype-guided distillation: its loss part by part, what learns from which part, and what is refused."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models import cnn, prototype_resnet, resnet, vit
from limbeck.objectives import Hint
from limbeck.signals import Signals, capture
from limbeck.training import PrototypeBranch, PrototypeDistil
from limbeck.training.prototypes import common_tokens

LAYERS = ("layer1", "layer2", "layer3")


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(6, 1, 8, 8, generator=draw),
        "labels": torch.randint(0, 3, (6,), generator=draw),
    }


def made(**settings):
    torch.manual_seed(0)
    student, teacher = prototype_resnet(8, 3, 1, 4, prototypes=5).eval(), resnet(8, 7, 1, 8).eval()
    procedure = PrototypeDistil(student, teacher, LAYERS, **settings)
    procedure.prepare(batch(), torch.device("cpu"))
    return procedure, student, teacher


def parts(procedure, student, teacher, given):
    """Cross-entropies of the plain answer, of the enriched one and of the teacher's branch, computed without the procedure."""
    tokens = student.tokens(given["pixel_values"])
    signals = capture(teacher, given, LAYERS)
    summary = procedure.connectors["1_summary"]
    seen = [F.adaptive_avg_pool2d(signals[n], 2).detach().flatten(2).transpose(1, 2) for n in LAYERS]
    answers = (student.answer(tokens, plain=True), student(given["pixel_values"]))
    answers += (student.answer(summary(seen, student.augment.prototypes)),)
    return [F.cross_entropy(answer, given["labels"]) for answer in answers]


def test_the_loss_is_the_sum_of_its_parts_and_its_gradient_too():
    procedure, student, teacher = made(branch=0.5, own=0.25, objective=2.0 * Hint("backbone.layer3", "layer3"))
    given = batch(1)
    value = procedure.step(given, None)["main"].value
    plain, own, branch = parts(procedure, student, teacher, given)
    signals = capture(student, given, {"backbone.layer3"}), capture(teacher, given, {"layer3"})
    hint = Hint("backbone.layer3", "layer3")(*signals, given, {"projector": procedure.connectors["3_projector"]}).value
    expected = plain + 0.25 * own + 0.5 * branch + 2 * hint
    torch.testing.assert_close(value, expected)
    weights = list(student.parameters())
    for one, other in zip(*(torch.autograd.grad(x, weights) for x in (value, expected))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_teacher_trains_prototypes_and_classifier_but_not_the_backbone():
    procedure, student, teacher = made(own=0.0)
    *_, branch = parts(procedure, student, teacher, batch())
    names, weights = zip(*student.named_parameters())
    slopes = dict(zip(names, torch.autograd.grad(branch, weights, allow_unused=True)))
    moved = {name for name, slope in slopes.items() if slope is not None and float(slope.abs().max()) > 0}
    assert moved == {n for n in names if n.startswith("augment.")} | {"backbone.fc.weight", "backbone.fc.bias"}
    assert all(p.grad is None for p in teacher.parameters())


def test_without_the_branch_no_teacher_is_asked():
    torch.manual_seed(0)
    procedure = PrototypeDistil(prototype_resnet(8, 3, 1, 4, 5), None, branch=0.0, own=1.0)
    procedure.prepare(batch(), torch.device("cpu"))
    assert set(procedure.modules) == {"student"} and not procedure.objective.reads.teacher
    assert bool(procedure.step(batch(), None)["main"].value.isfinite())


def test_unlabelled_and_weightless_examples_do_not_count():
    procedure, _, _ = made()
    given, objective = batch(), procedure.objective.terms[1][0]
    connectors = {"summary": procedure.connectors["1_summary"]}
    keep = torch.tensor([0, 2, 3, 5])
    ignored = given["labels"].clone()
    ignored[1], ignored[4] = -100, -100
    weight = torch.ones(6).index_fill(0, torch.tensor([1, 4]), 0.0)
    teacher = procedure._teacher_signals(given)

    def value(teacher, labels, **more):
        own = Signals({"logits": torch.zeros(len(labels), 3)})
        return objective(own, teacher, {"labels": labels, **more}, connectors).value

    expected = value(Signals({n: teacher[n][keep] for n in LAYERS}), given["labels"][keep])
    torch.testing.assert_close(value(teacher, ignored), expected)
    torch.testing.assert_close(value(teacher, given["labels"], sample_weight=weight), expected)


def test_tokens_of_several_layers():
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 2)]
    assert [x.shape for x in common_tokens(maps)] == [(2, 8, 3), (2, 8, 5)]
    sequences = [torch.randn(2, 5, 3), torch.randn(2, 5, 4)]
    assert all(torch.equal(a, b) for a, b in zip(common_tokens(sequences), sequences))
    with pytest.raises(UsageError, match="5 and 4 tokens"):
        common_tokens([torch.randn(2, 5, 3), torch.randn(2, 4, 3)])
    with pytest.raises(UsageError, match="of one layout"):
        common_tokens([torch.randn(2, 5)])


def test_a_teacher_of_tokens_teaches_too():
    torch.manual_seed(0)
    teacher = vit(8, 4, 7, 1, 3, 16, 2)
    procedure = PrototypeDistil(prototype_resnet(8, 3, 1, 4, 5), teacher, ("blocks.0", "blocks.1", "blocks.2"))
    procedure.prepare(batch(), torch.device("cpu"))
    assert bool(procedure.step(batch(), None)["main"].value.isfinite())


def test_a_student_without_prototypes_is_refused():
    with pytest.raises(UsageError, match="PrototypeNet"):
        PrototypeBranch(cnn((4,)), LAYERS)
    with pytest.raises(UsageError, match="at least 1"):
        PrototypeBranch(prototype_resnet(8), ())
