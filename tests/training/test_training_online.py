"""Online procedure: who learns what from whom, compared with steps computed by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.objectives import BalancedDivergence, CrossEntropy, Hint, SoftTargets
from limbeck.training import Online, Supervised, Trainer, TrainingConfig

CONFIG = TrainingConfig(steps=4, batch_size=8, learning_rate=0.05, optimizer="sgd", checkpoint_every=2)


class Network(nn.Module):
    def __init__(self, seed, width):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(32, width), nn.Linear(width, 3)

    def forward(self, pixel_values):
        return self.head(F.relu(self.body(pixel_values.flatten(1))))


def pair():
    return {"student": Network(0, 4), "teacher": Network(1, 8)}


def equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_each_peer_follows_the_gradient_of_its_own_loss_only():
    peers, given = pair(), next(TinyTask().batches("train", 8))
    mutual = CrossEntropy() + SoftTargets(temperature=1.0)
    losses = Online(peers, mutual).step(given, None)
    outputs = {name: model(given["pixel_values"]) for name, model in peers.items()}
    for own, other in (("student", "teacher"), ("teacher", "student")):
        target = outputs[other].detach().softmax(-1)
        kl = (target * (target.log() - outputs[own].log_softmax(-1))).sum(-1).mean()
        expected = F.cross_entropy(outputs[own], given["labels"]) + kl
        torch.testing.assert_close(losses[own].value, expected)
        gradients = torch.autograd.grad(losses[own].value, list(peers[own].parameters()), retain_graph=True)
        hand = torch.autograd.grad(expected, list(peers[own].parameters()), retain_graph=True)
        for ours, theirs in zip(gradients, hand):
            torch.testing.assert_close(ours, theirs)
        reached = torch.autograd.grad(
            losses[own].value, list(peers[other].parameters()), retain_graph=True, allow_unused=True
        )
        assert all(found is None for found in reached)


def test_three_peers_average_over_the_others():
    peers = pair() | {"third": Network(2, 5)}
    given = next(TinyTask().batches("train", 8))
    losses = Online(peers, SoftTargets(temperature=2.0)).step(given, None)
    logs = {name: (model(given["pixel_values"]) / 2).log_softmax(-1) for name, model in peers.items()}
    each = [(logs[o].exp() * (logs[o] - logs["student"])).sum(-1).mean() for o in ("teacher", "third")]
    torch.testing.assert_close(losses["student"].value, 4 * (each[0] + each[1]) / 2)


def test_peers_that_ignore_each_other_are_trained_as_if_alone():
    peers = pair()
    Trainer(CONFIG, progress=False).run(Online(peers, CrossEntropy()), TinyTask())
    for name, alone in pair().items():
        Trainer(CONFIG, progress=False).run(Supervised(alone, CrossEntropy()), TinyTask())
        for ours, theirs in zip(peers[name].state_dict().values(), alone.state_dict().values()):
            torch.testing.assert_close(ours, theirs)


def test_connectors_belong_to_their_student_and_are_trained():
    peers = pair()
    procedure = Online(peers, {"student": CrossEntropy() + Hint("body"), "teacher": CrossEntropy()})
    task = TinyTask()
    procedure.prepare(next(task.batches("train", 4)), torch.device("cpu"))
    name = next(name for name in procedure.modules if name.startswith("connector."))
    assert name.startswith("connector.student.teacher.")
    assert procedure.optimizers == {"student": ("student", name), "teacher": ("teacher",)}
    assert procedure.model() is peers["student"]
    Trainer(CONFIG, progress=False).run(procedure, task)
    assert name in procedure.kept_modules()


def test_a_resumed_run_ends_with_the_same_numbers(tmp_path):
    class Stopped(Exception):
        pass

    class Stops(Online):
        at = -1

        def step(self, batch, state):
            if state.step == self.at:
                raise Stopped
            return super().step(batch, state)

    def run(folder=None, at=-1):
        peers = pair()
        objectives = {"student": CrossEntropy() + BalancedDivergence(), "teacher": CrossEntropy()}
        procedure = Stops(peers, objectives)
        procedure.at = at
        Trainer(CONFIG, folder, progress=False).run(procedure, TinyTask())
        return peers

    whole = run()
    with pytest.raises(Stopped):
        run(tmp_path, at=3)
    resumed = run(tmp_path)
    for name in whole:
        equal(whole[name], resumed[name])


def test_nonsense_is_refused():
    peers = pair()
    with pytest.raises(UsageError, match="two or more"):
        Online({"student": peers["student"]}, CrossEntropy())
    with pytest.raises(UsageError, match="two or more"):
        Online({"student": peers["student"], "teacher": peers["student"]}, CrossEntropy())
    with pytest.raises(UsageError, match="same"):
        Online(peers, {"student": CrossEntropy()})
