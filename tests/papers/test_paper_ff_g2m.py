"""The arms of FF-G2M end to end on a ring, and the composition is what the paper says."""

import math

import pytest
import torch

from limbeck.beds import graphs
from limbeck.datasets.graphs import Graph
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.graphs import HighFrequency, LowFrequency
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.papers import ff_g2m
from limbeck.tasks import NodeClassification


@pytest.fixture
def tiny(monkeypatch):
    around = torch.arange(12)
    edges = torch.stack([torch.cat([around, around.roll(1)]), torch.cat([around.roll(1), around])])
    parts = {"train": around[::3], "validation": around[1::3], "test": around[2::3]}
    task = NodeClassification(Graph(torch.eye(12), edges, around // 6, parts))
    monkeypatch.setattr(graphs, "_nodes", lambda name: task)
    monkeypatch.setattr(ff_g2m, "BEDS", (graphs.Nodes("cora", width=4, steps=3),))


@pytest.mark.parametrize("name", ff_g2m.paper.arms)
def test_every_arm_runs_and_costs_the_same(name, tiny, tmp_path):
    arm = ff_g2m.paper.arms[name]
    one = Run(0, "validation", Store(tmp_path))
    found = arm.run(one, **arm.candidates()[0])
    assert all(math.isfinite(value) for value in found.values())
    assert one.costs == {"steps": 3, "samples": 3}


def test_the_composition():
    terms = dict(ff_g2m.objective("both", 0.1).terms)
    assert terms == {CrossEntropy(): 0.1, LowFrequency(1.0): 0.9, HighFrequency(1.5): 0.9}
    assert dict(ff_g2m.objective("low", 0.1).terms)[HighFrequency(1.5)] == 0
    assert dict(ff_g2m.objective("none", 0.1).terms) == {
        CrossEntropy(): 0.1,
        SoftTargets(temperature=1.0, positions="all"): 0.9,
    }
