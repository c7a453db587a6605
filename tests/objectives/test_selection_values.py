import torch
from torch.nn import functional as F

from limbeck.objectives import ExcessTargets, SoftTargets
from limbeck.objectives.logits.selection import highest
from limbeck.signals import Signals


def example():
    draw = torch.Generator().manual_seed(1)
    student, target, reference = (2 * torch.randn(3, 7, 5, generator=draw) for _ in range(3))
    labels = torch.randint(0, 5, (3, 7), generator=draw)
    labels[1, 4:] = -100
    return student, target, reference, {"labels": labels}


def teacher(target, reference):
    return Signals({"0.logits": target, "1.logits": reference})


def naive(student, target, reference, labels, keep, temperature):
    """Token by token: divergences, the quantile, the mean over what lies at or above it."""
    losses, gaps = [], []
    for b, t in (labels != -100).nonzero().tolist():
        p, q, r = (F.softmax(x[b, t] / temperature, -1) for x in (target, student, reference))
        losses.append((p * (p / q).log()).sum())
        gaps.append(float(losses[-1].detach() - (p * (p / r).log()).sum()))
    least = torch.tensor(gaps, dtype=torch.float64).quantile(1 - keep, interpolation="higher")
    kept = [loss for loss, gap in zip(losses, gaps) if gap >= float(least)]
    return temperature**2 * torch.stack(kept).mean()


def test_value_and_gradient_are_those_of_a_naive_loop():
    for keep, temperature in ((0.4, 1.0), (0.25, 2.0)):
        student, target, reference, batch = example()
        student.requires_grad_()
        objective = ExcessTargets(keep=keep, temperature=temperature)
        loss = objective(Signals({"logits": student}), teacher(target, reference), batch).value
        (got,) = torch.autograd.grad(loss, student)
        other = naive(student, target, reference, batch["labels"], keep, temperature)
        (expected,) = torch.autograd.grad(other, student)
        torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_keeping_everything_is_soft_targets():
    student, target, reference, batch = example()
    own = Signals({"logits": student})
    for temperature in (1.0, 3.0):
        loss = ExcessTargets(keep=1.0, temperature=temperature)(own, teacher(target, reference), batch).value
        plain = SoftTargets(temperature=temperature)(own, Signals({"logits": target}), batch).value
        torch.testing.assert_close(loss, plain)


def test_the_positions_where_the_student_lags_most_are_kept():
    target = torch.zeros(1, 4, 2)
    student, reference = target.clone(), target.clone()
    student[0, :, 0] = torch.tensor([1.0, 4.0, 4.0, 0.0])
    reference[0, :, 0] = torch.tensor([0.0, 4.0, 0.0, 2.0])  # hard for both at 1, better than the reference at 3
    student.requires_grad_()
    batch = {"labels": torch.zeros(1, 4).long()}
    ExcessTargets(keep=0.5)(Signals({"logits": student}), teacher(target, reference), batch).value.backward()
    assert (student.grad.abs().sum(-1) > 0).tolist() == [[True, False, True, False]]


def test_highest_keeps_a_share_of_what_counts_and_all_ties():
    scores = torch.tensor([5.0, 1.0, 3.0, 9.0, 3.0])
    assert highest(scores, None, 0.4).tolist() == [1, 0, 0, 1, 0]
    assert highest(scores, None, 0.6).tolist() == [1, 0, 1, 1, 1]
    assert highest(scores, torch.tensor([1.0, 1, 1, 0, 2]), 0.25).tolist() == [1, 0, 0, 0, 0]
    assert highest(scores, torch.tensor([1.0, 1, 1, 0, 2]), 0.75).tolist() == [1, 0, 1, 0, 2]
    assert highest(scores, torch.zeros(5), 0.5).tolist() == [0] * 5
    assert highest(torch.arange(10.0), None, 0.3).sum() == 3
