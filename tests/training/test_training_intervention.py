"""Teacher intervention, against forward passes written by hand."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models import vit
from limbeck.objectives import Hint, SoftTargets, TokenRelations
from limbeck.signals import Tap, capture, detached, injected
from limbeck.training import Distil, Intervention, State, TeacherIntervention, gradual_intervention

STATES = {
    name: State(at, 60, 0.0, 0, torch.device("cpu")) for name, at in (("output", 4), ("context", 5), ("maps", 29))
}
AFTER = State(30, 60, 0.0, 0, torch.device("cpu"))


def models():
    torch.manual_seed(0)
    teacher = vit(size=4, patch=2, classes=3, channels=1, depth=2, width=8, heads=2)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return student, teacher.eval()


def objective():
    found = SoftTargets(temperature=1.0)
    for i in range(2):
        pair = (f"blocks.{i}.attention.query", f"blocks.{i}.attention.key")
        found = (
            found + Hint(f"blocks.{i}") + Hint(f"blocks.{i}.attention.output") + TokenRelations(pair, pair, 2, "mse")
        )
    return found


def heads(x):
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


def by_hand(model, x, taught=None, how=None):
    """All that the loss reads, block by block; taught: what another model's pass gave, how: which of it is taken."""
    given, states = [], {}
    x = model.embed(x)
    for i, block in enumerate(model.blocks):
        attention, h = block.attention, block.norm1(x)
        local = h.detach() if how else h
        query, key = attention.query(local), attention.key(local)
        value = attention.value(h.detach() if how in ("output", "context") else h)
        scores = heads(query) @ heads(key).mT / math.sqrt(4)
        maps = scores.softmax(-1)
        if how == "maps":
            maps = taught[i]["maps"]
        context = (maps @ heads(value)).transpose(1, 2).flatten(2)
        own = attention.output(taught[i]["context"] if how == "context" else context)
        x = x + (taught[i]["output"] if how == "output" else own)
        x = x + block.feed_forward(block.norm2(x))
        states[i] = {"state": x, "scores": scores, "own": own}
        given.append({"maps": maps.detach(), "context": context.detach(), "output": own.detach()})
    return model.head(model.norm(x)[:, 0]), states, given


def loss_by_hand(student, teacher, x, how):
    with torch.no_grad():
        target, states, given = by_hand(teacher, x)
    logits, own, _ = by_hand(student, x, given, how)
    loss = F.kl_div(logits.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    names = ("state", "scores", "own")
    return loss + sum(F.mse_loss(own[i][name], states[i][name]) for i in range(2) for name in names)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("how", ["output", "context", "maps", None])
def test_every_phase_is_the_pass_written_by_hand_with_its_gradients(how):
    student, teacher = models()
    x = torch.randn(5, 1, 4, 4)
    procedure = TeacherIntervention(student, teacher, objective(), gradual_intervention(share=0.5))
    loss = procedure.step({"pixel_values": x}, STATES[how] if how else AFTER)["main"].value
    loss.backward()
    found = gradients(student)
    student.zero_grad()
    expected = loss_by_hand(student, teacher, x, how)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    wanted = gradients(student)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    if how == "context":
        assert "blocks.0.attention.value.weight" not in found


def test_without_a_phase_it_is_plain_distillation():
    student, teacher = models()
    batch = {"pixel_values": torch.randn(5, 1, 4, 4)}
    plain = Distil(student, teacher, objective()).step(batch, AFTER)["main"].value
    found = TeacherIntervention(student, teacher, objective(), [Intervention(0.5, "blocks.*")]).step(batch, AFTER)
    assert torch.equal(found["main"].value, plain)


def test_with_every_layer_the_teachers_the_answer_is_the_teachers():
    student, teacher = models()
    student.head, student.norm = copy.deepcopy(teacher.head), copy.deepcopy(teacher.norm)
    x = {"pixel_values": torch.randn(5, 1, 4, 4)}
    given = capture(teacher, x, {"blocks.0", "blocks.1", "logits"})
    with injected(student, {name: given[name] for name in ("blocks.0", "blocks.1")}):
        torch.testing.assert_close(student(**x), given["logits"])
    assert not torch.allclose(student(**x), given["logits"], atol=1e-3)  # and afterwards nothing of the teacher is left


def test_a_tap_sees_the_own_signal_before_and_the_given_one_after():
    student, teacher = models()
    x = {"pixel_values": torch.randn(2, 1, 4, 4)}
    name = "blocks.0.attention.output:input"
    own, other = capture(student, x, {name})[name], capture(teacher, x, {name})[name]
    with Tap(student, {name}) as first, injected(student, {name: other}), Tap(student, {name}) as last:
        torch.testing.assert_close(first(x)[name], own)
        torch.testing.assert_close(last(x)[name], other)


def test_no_gradient_passes_a_detached_input():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    with detached(layers, ["1"]):
        layers(torch.randn(2, 3)).sum().backward()
    assert layers[0].weight.grad is None and layers[1].weight.grad is not None
    layers(torch.randn(2, 3)).sum().backward()
    assert layers[0].weight.grad is not None


def test_phases_follow_one_another():
    student, teacher = models()
    procedure = TeacherIntervention(student, teacher, SoftTargets(), gradual_intervention(share=0.5))
    ends = [procedure.phase(State(at, 60, 0.0, 0, torch.device("cpu"))) for at in range(60)]
    assert [sum(found is phase for found in ends) for phase in (*procedure.phases, None)] == [5, 5, 20, 30]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Intervention(0.0, "blocks.0"), "until"),
        (lambda: Intervention(1.5, "blocks.0"), "until"),
        (lambda: Intervention(0.5, ()), "signals"),
        (lambda: Intervention(0.5, ("blocks.0:weight",)), "weight"),
        (lambda: gradual_intervention(share=2.0), "share"),
        (lambda: TeacherIntervention(*models(), SoftTargets(), ()), "phases"),
        (lambda: TeacherIntervention(*models(), SoftTargets(), [Intervention(0.5, "blocks.0")] * 2), "phases"),
        (lambda: TeacherIntervention(*models(), SoftTargets(), [Intervention(0.5, "layers.0")]), "layers"),
    ],
)
def test_what_cannot_be_is_refused(make, word):
    with pytest.raises(UsageError, match=word):
        make()


def test_signals_of_two_shapes_are_refused():
    student, teacher = models()
    procedure = TeacherIntervention(student, teacher, SoftTargets(), [Intervention(0.5, [("blocks.0", "logits")])])
    with pytest.raises(UsageError, match="cannot be replaced"):
        procedure.step({"pixel_values": torch.randn(2, 1, 4, 4)}, STATES["output"])
