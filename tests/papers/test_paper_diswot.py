"""DisWOT: the arms run, share the accuracies, and mutation changes one gene."""

import math
from dataclasses import replace

import pytest
import torch

from limbeck.beds.images import DIGITS
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers import diswot

TINY = replace(
    DIGITS, train=64, validation=50, training=replace(DIGITS.training, epochs=None, steps=1),
    teacher_training=replace(DIGITS.teacher_training, epochs=None, steps=1),
)  # fmt: skip


def test_the_arms_run_and_share_what_was_trained(tmp_path):
    spent = []
    for score in ("diswot", "parameters", "random"):
        one = Run(0, "validation", Store(tmp_path))
        found = diswot.rank(one, score, TINY, candidates=3, evaluations=6)
        assert set(found) == {"spearman", "found", "picked", "median"} and all(map(math.isfinite, found.values()))
        assert -1 <= found["spearman"] <= 1 and one.costs == {"candidates": 3, "evaluations": 6}
        spent.append(sum(not entry["hit"] for entry in one.store.used))
    assert spent[0] >= 4 and max(spent[1:]) <= 1  # the found network may be another one


def test_a_mutation_changes_one_gene():
    draws = torch.Generator().manual_seed(0)
    for _ in range(30):
        genes = diswot.sample(draws)
        other = diswot.mutate(genes, draws)
        assert sum(a != b for a, b in zip(genes, other)) == 1
        assert all(0 <= gene < len(values) for gene, values in zip(other, diswot.CHOICES.values()))


@pytest.mark.parametrize("genes", [(0,) * 8, (2, 2, 2, 2, 2, 1, 1, 2)])
def test_every_network_has_the_teachers_last_width(genes):
    model = diswot.network(genes, 64, 1)
    assert model.fc.in_features == 64 and model(torch.randn(2, 1, 14, 14)).shape == (2, 10)
