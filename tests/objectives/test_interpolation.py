"""The moving target: its value at both ends, the share's course against the rule in plain floats, and training with it."""

import math

import pytest
import torch
from test_objective_values import agree, draw, softmax
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives import InterpolatedTargets, SoftTargets
from limbeck.objectives.logits.interpolation import AdaptiveShare
from limbeck.signals import Signals
from limbeck.tasks import CustomTask
from limbeck.training import Distil, Trainer, TrainingConfig
from limbeck.training.procedures import State


def at(step, steps=10, processes=1):
    return State(step, steps, 0.0, 0, torch.device("cpu"), 0, processes)


def share_of(value):
    follower = AdaptiveShare(value, 1.0, 0.0, 0.9)
    return {"share": follower}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_the_divergence_from_a_mixture_of_logits(share):
    objective = InterpolatedTargets(start=share)

    def reference(student, teacher):
        total = 0
        for s, t in zip(student, teacher):
            p, q = softmax((1 - share) * s.detach() + share * t), softmax(s)
            total = total + (p * (p / q).log()).sum() / len(student)
        return total

    student, teacher = draw(5, 4), 2 * draw(5, 4, seed=1)
    if share:
        agree(objective, student, teacher, {}, reference, connectors=share_of(share))
    else:  # the student itself: nothing to learn
        assert (
            float(objective(Signals({"logits": student}), Signals({"logits": teacher}), {}, share_of(0.0)).value) == 0
        )


def test_at_the_end_it_is_soft_targets():
    signals = Signals({"logits": draw(5, 4)}), Signals({"logits": draw(5, 4, seed=1)})
    found = InterpolatedTargets()(*signals, {}, share_of(1.0)).value
    torch.testing.assert_close(found, SoftTargets(temperature=1.0)(*signals, {}).value)


def test_the_share_follows_the_rule():
    follower, losses = AdaptiveShare(0.4, 0.9, 0.3, 0.5), [2.0, 1.0, 1.5, 0.5, 0.4, 0.4, 0.3, 0.2, 0.1, 0.1]
    share, trend, before = 0.4, 0.0, None
    for n, loss in enumerate(losses):
        follower.observe(torch.tensor(loss), 4)
        follower.after_step(at(n))
        if before is not None:
            trend = 0.5 * trend + 0.5 * (before - loss) / before
            share = share + 0.3 / (1 + math.exp(-trend)) * (1 - share)
        share, before = min(0.9, max(share, 0.4 + 0.5 * (n + 1) / 10)), loss
        assert float(follower.share) == pytest.approx(share, rel=1e-5)
    assert share == 0.9


def test_without_a_rate_the_share_is_a_line_and_a_faster_fall_raises_it_more():
    line, slow, fast = (AdaptiveShare(0.2, 1.0, rate, 0.0) for rate in (0.0, 0.5, 0.5))
    for n, (gentle, steep) in enumerate([(1.0, 1.0), (0.99, 0.5)]):
        for follower, loss in ((line, gentle), (slow, gentle), (fast, steep)):
            follower.observe(torch.tensor(loss), 1)
            follower.after_step(at(n))
    assert float(line.share) == pytest.approx(0.36)
    assert 0.36 < float(slow.share) < float(fast.share)


def test_pieces_of_a_batch_are_put_together_by_weight():
    whole, pieces = AdaptiveShare(0.4, 1.0, 0.5, 0.5), AdaptiveShare(0.4, 1.0, 0.5, 0.5)
    for n, (a, b) in enumerate([(1.0, 4.0), (0.5, 1.0)]):
        whole.observe(torch.tensor((3 * a + b) / 4), 4)
        pieces.observe(torch.tensor(a), 3), pieces.observe(torch.tensor(b), 1)
        whole.after_step(at(n)), pieces.after_step(at(n))
    torch.testing.assert_close(whole.share, pieces.share)


def test_what_the_share_follows_is_the_divergence_or_the_cross_entropy():
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    signals, seen = (Signals({"logits": student}), Signals({"logits": teacher})), {}
    for progress in ("kl", "cross_entropy"):
        made = share_of(0.4)
        loss = InterpolatedTargets(progress=progress)(*signals, {}, made).value
        seen[progress] = made["share"].total / made["share"].weight
    p = (0.6 * student + 0.4 * teacher).softmax(-1)
    torch.testing.assert_close(seen["kl"], loss)
    torch.testing.assert_close(seen["cross_entropy"], -(p * student.log_softmax(-1)).sum(-1).mean())


def test_training_moves_the_share_and_checkpoints_it(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    task = CustomTask({"train": (x, x.argmax(1)), "test": (x, x.argmax(1))}, classes=6, version="interpolation")
    config = TrainingConfig(steps=8, batch_size=16, checkpoint_every=4)

    def trained(folder, steps=None):
        torch.manual_seed(1)
        procedure = Distil(nn.Linear(6, 6), nn.Linear(6, 6), InterpolatedTargets(rate=0.2, momentum=0.5))
        Trainer(config, folder=folder, progress=False).run(procedure, task)
        return procedure.connectors["share"], procedure.student

    share, student = trained(tmp_path / "a")
    assert float(share.share) == 1.0
    assert float(share.previous) > 0
    again, same = trained(tmp_path / "a")  # loads what was finished
    torch.testing.assert_close(again.previous, share.previous)
    torch.testing.assert_close(same.weight, student.weight)


def test_without_its_share_it_says_what_is_missing():
    signals = Signals({"logits": draw(5, 4)})
    with pytest.raises(UsageError, match="connectors"):
        InterpolatedTargets()(signals, signals, {})
