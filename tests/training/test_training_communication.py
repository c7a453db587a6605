"""Communication: each term computed by hand, where gradients go, and its one-way limit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models import encoder
from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.signals import Tap, capture, injected
from limbeck.training import Communication

LOW, HIGH = ("blocks.0", "blocks.1"), ("blocks.0", "blocks.2")


@pytest.fixture
def batch():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 1])}


def talk(batch, **settings):
    torch.manual_seed(0)
    student, teacher = encoder(9, depth=2, width=8, heads=2), encoder(9, depth=3, width=12, heads=2)
    for parameter in [*student.parameters(), *teacher.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    made = Communication(student, teacher, CrossEntropy(), LOW, HIGH, message=6, **settings)
    made.prepare(batch, torch.device("cpu"))
    return made


def distance(x, y):
    """Squared errors of the six tokens that count."""
    return torch.stack(
        [(x[b, i] - y[b, i]).square().mean() for b, i in [*((0, i) for i in range(4)), (1, 0), (1, 1)]]
    ).mean()


def upper(teacher, state, mask):
    """The teacher's second and third block, by hand."""
    for block in teacher.blocks[1:]:
        state = block(state, mask.bool()[:, None, None, :])
    return state


@pytest.mark.parametrize("rounds", [1, 2])
def test_every_term_by_hand(batch, rounds):
    talking = talk(batch, rounds=rounds, interaction=0.5, message_consistency=2.0, state_consistency=3.0)
    loss = talking.step(batch, None)["main"]
    m, teacher = talking.modules, talking.teacher.model
    own = capture(talking.student, batch, {"logits", *LOW})
    theirs = capture(teacher, batch, HIGH)
    spoken, interaction = own[LOW[0]], 0
    for _ in range(rounds):
        heard = m["teacher_decoder"](m["student_encoder"](spoken))
        answer = m["student_decoder"](m["teacher_encoder"](upper(teacher, heard, batch["attention_mask"])))
        interaction = interaction + distance(own[LOW[1]], answer) / rounds
        spoken = answer
    message = (
        sum(distance(m["student_encoder"](own[s]), m["teacher_encoder"](theirs[t])) for s, t in zip(LOW, HIGH)) / 2
    )
    back = [m["student_decoder"](m["student_encoder"](own[s])) for s in LOW]
    back += [m["teacher_decoder"](m["teacher_encoder"](theirs[t])) for t in HIGH]
    states = [*(own[s] for s in LOW), *(theirs[t] for t in HIGH)]
    state = sum(distance(b, x) for b, x in zip(back, states)) / 4
    expected = F.cross_entropy(own.logits, batch["labels"]) + 0.5 * interaction + 2 * message + 3 * state
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=1e-6)
    assert set(loss.parts) == {"CrossEntropy", "interaction", "message", "state"}
    trained = [p for module in m.values() for p in module.parameters()]
    ours = torch.autograd.grad(loss.value, trained, allow_unused=True, retain_graph=True)
    hand = torch.autograd.grad(expected, trained, allow_unused=True)
    for a, b in zip(ours, hand):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert a is not None and float(a.abs().max()) > 0


def test_the_answer_depends_on_the_message_unless_the_teacher_reads_the_input(batch):
    for reads, moves in (("message", True), ("input", False)):
        talking = talk(batch, reads=reads, message_consistency=0.0, state_consistency=0.0)
        loss = talking.step(batch, None)["main"].value
        speech = list(talking.modules["student_encoder"].parameters())
        found = torch.autograd.grad(loss, speech, allow_unused=True)
        assert all((g is not None) == moves for g in found)
    # the teacher that reads the input: a hint whose target is its own upper state, encoded and decoded
    own = capture(talking.student, batch, {"logits", *LOW})
    high = capture(talking.teacher.model, batch, {HIGH[1]})[HIGH[1]]
    target = talking.modules["student_decoder"](talking.modules["teacher_encoder"](high))
    torch.testing.assert_close(loss, F.cross_entropy(own.logits, batch["labels"]) + distance(own[LOW[1]], target))


def test_padding_neither_speaks_nor_is_heard(batch):
    talking = talk(batch)
    value = talking.step(batch, None)["main"].value
    other = dict(batch, input_ids=torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    torch.testing.assert_close(talking.step(other, None)["main"].value, value)


def test_injection_continues_from_the_given_state_and_leaves_no_hook(batch):
    model = encoder(9, depth=3, width=12, heads=2)
    state = torch.randn(2, 4, 12, requires_grad=True)
    with injected(model, {"blocks.0": state}), Tap(model, {"blocks.0", "blocks.2"}) as tap:
        found = tap(batch)
    torch.testing.assert_close(found["blocks.2"], upper(model, state, batch["attention_mask"]))
    assert torch.equal(found["blocks.0"], state)
    found["blocks.2"].sum().backward()
    assert float(state.grad.abs().max()) > 0 and model.tokens.weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(UsageError, match=r"blocks\.7.*Did you mean"), injected(model, {"blocks.7": state}):
        pass


def test_refusals(batch):
    student, teacher = encoder(9, depth=2, width=8, heads=2), encoder(9, depth=3, width=12, heads=2)
    with pytest.raises(UsageError, match="same module"):
        Communication(student, student, CrossEntropy(), LOW, HIGH)
    for objective in (SoftTargets(), CrossEntropy() + Hint("blocks.0")):
        with pytest.raises(UsageError, match="reads a teacher"):
            Communication(student, teacher, objective, LOW, HIGH)
    for wrong in ({"rounds": 0}, {"message": 0}, {"interaction": -1.0}, {"reads": "minds"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Communication(student, teacher, CrossEntropy(), LOW, HIGH, **wrong)
    with pytest.raises(UsageError, match="must be the same"):
        Communication(student, teacher, CrossEntropy(), ("blocks.0", "head"), HIGH).prepare(batch, torch.device("cpu"))
